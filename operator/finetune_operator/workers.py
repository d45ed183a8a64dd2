"""The workers of one term: they take jobs from the queue, and keep an error with the job that it came from."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from finetune_api.text import one_line

from .cache_sync import CacheSync
from .dispatch import Dispatcher
from .inquiries.progress_poller import Poller
from .kube.client import ApiError
from .kube.resources import Key
from .logs import about
from .metrics import Counters
from .reconciler import Reconciler

logger = logging.getLogger(__name__)

REST = 5e-4
"""Seconds between two looks at a job, for each of its pods: a look takes some microseconds for each, and a gang that
starts brings news of every pod several times."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    reconciler: Reconciler
    dispatch: Dispatcher
    sync: CacheSync
    poller: Poller
    counters: Counters
    count: int
    elected: bool
    """There are other replicas: a term begins with lists of everything."""

    async def run(self) -> None:
        """One term, until cancelled. A new leader decides on nothing older than its term. A namespace that cannot be
        listed does not keep the others waiting."""
        await self.sync.synced.wait()
        dispatch, scope = self.dispatch, self.dispatch.scope
        if self.elected:
            scope.forget()
        dispatch.acting = True
        try:
            dispatch.all_news(job.owner for job in dispatch.cache.jobs)
            async with asyncio.TaskGroup() as group:
                for namespace in scope.namespaces if self.elected else ():
                    group.create_task(self.sync.list_all(namespace), name=f"list {namespace or 'all'}")
                for _ in range(self.count):
                    group.create_task(self.work())
        finally:
            dispatch.acting = False
            dispatch.queue.clear()
            self.poller.follow_nobody()

    async def work(self) -> None:
        """One worker, for ever."""
        queue = self.dispatch.queue
        while True:
            key = await queue.get()
            start = time.perf_counter()
            result = "error"
            try:
                with about(key, self._attempt(key)):
                    result = await self._look(key)
            finally:
                queue.done(key, rest=REST * len(self.dispatch.cache.pods.of(key)))
                self.counters.reconciles.labels(result).inc()
                self.counters.reconcile_seconds.observe(time.perf_counter() - start)

    async def _look(self, key: Key) -> str:
        """`done` or `error`; the job of an error is looked at again."""
        queue, unexpected = self.dispatch.queue, self.reconciler.unexpected
        try:
            await self.reconciler.reconcile(key)
        except ApiError as error:
            pause = queue.retry(key, at_least=error.retry_after)
            logger.info("%s/%s: %s; retrying in %.1f s", *key, one_line(error), pause)
            return "error"
        except Exception as error:
            if unexpected.met(key, error, pause=queue.retry(key)):
                await self.reconciler.report_unexpected(key, error)
            return "error"
        queue.forget(key)
        unexpected.passed(key)
        return "done"

    def _attempt(self, key: Key) -> int | None:
        job = self.dispatch.cache.job(key)
        return job.status.attempt if job else None
