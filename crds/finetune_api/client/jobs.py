"""FineTuneJobs and AsyncFineTuneJobs: the methods that programs and notebooks call."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from . import copies, verbs
from .copies import Source
from .job import Event, Job, Jobs, Outcome
from .kubectl import Cluster

EVERY = 2.0
"""Seconds between two looks at a job."""
DAY = 86400.0


class FineTuneJobs:
    """The FineTuneJobs of one namespace.

    FinetuneError: NotFound (no such job), ClusterUnavailable (no answer, or no permission), WrongPhase (the job's phase
    does not allow it), AlreadyExists, PolicyViolated. ManifestError: a manifest that is not valid.
    """

    def __init__(self, *, namespace: str | None = None, context: str | None = None) -> None:
        """Default: namespace and context of the kubeconfig."""
        self._cluster = Cluster(namespace=namespace, context=context)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {_where(self._cluster)}>"

    def get(self, name: str) -> Job:
        return self._cluster.run(verbs.get(name))

    def list(self, *, all_namespaces: bool = False) -> Jobs:
        return self._cluster.run(verbs.list_jobs(everywhere=all_namespaces))

    def events(self, name: str) -> tuple[Event, ...]:
        """The latest events of a job, the last one last."""
        return self._cluster.run(verbs.events(name))

    def submit(self, manifest: Source, *, dry_run: bool = False) -> Outcome:
        """Creates a job. `dry_run`: the API server checks it and creates nothing."""
        return self._cluster.run(verbs.submit(copies.read(manifest), dry_run=dry_run))

    def stop(self, name: str) -> Outcome:
        """The job stops after a checkpoint and releases its nodes."""
        return self._cluster.run(verbs.stop(name))

    def resume(self, name: str) -> Outcome:
        """A stopped job continues from its last checkpoint."""
        return self._cluster.run(verbs.resume(name))

    def retry(self, name: str, manifest: Source | None = None) -> Outcome:
        """Deletes a failed job and creates it again from the first step, with another manifest if there is one."""
        return self._cluster.run(verbs.retry(name, None if manifest is None else copies.read(manifest)))

    def clone(
        self, name: str, new_name: str, *, output: str | None = None, settings: Mapping[str, Any] | None = None,
        dry_run: bool = False,
    ) -> Outcome:  # fmt: skip
        """Creates a job with the same spec and another name. `settings`: {"training.epochs": 5}."""
        raw = self.cloned(name, new_name, output=output, settings=settings)
        return self._cluster.run(verbs.submit(raw, action="cloned", dry_run=dry_run))

    def cloned(
        self, name: str, new_name: str, *, output: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The manifest that `clone` would create."""
        return copies.clone(self.get(name).raw, new_name, output=output, settings=settings or {})

    def delete(self, name: str, *, force: bool = False) -> Outcome:
        """Deletes a job; `force` also one whose training is not finished. Its artifact stays."""
        return self._cluster.run(verbs.delete(name, force=force))

    def wait(
        self, name: str, ready: Callable[[Job], bool] = lambda job: job.finished, *, timeout: float = DAY,
        every: float = EVERY,
    ) -> Job:  # fmt: skip
        """The job once it is finished, or once `ready` is true of it. TimeoutError after `timeout` seconds."""
        return self._cluster.run(verbs.wait(name, ready, timeout=timeout, every=every))

    def watch(self, name: str, *, every: float = EVERY) -> Iterator[Job]:
        """The job now and after each change of its status, until it is finished. An API server that does not answer any
        more is asked again for ten minutes."""
        last = None
        while True:
            job = self.get(name) if last is None else self._cluster.run(verbs.get_again(name, every=every))
            if last is None or job.object != last.object:
                yield job
            if job.finished:
                return
            last = job
            time.sleep(every)


class AsyncFineTuneJobs:
    """FineTuneJobs for event loops: the same methods as coroutines, with the same errors."""

    def __init__(self, *, namespace: str | None = None, context: str | None = None) -> None:
        self._cluster = Cluster(namespace=namespace, context=context)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {_where(self._cluster)}>"

    async def get(self, name: str) -> Job:
        return await self._cluster.run_async(verbs.get(name))

    async def list(self, *, all_namespaces: bool = False) -> Jobs:
        return await self._cluster.run_async(verbs.list_jobs(everywhere=all_namespaces))

    async def events(self, name: str) -> tuple[Event, ...]:
        return await self._cluster.run_async(verbs.events(name))

    async def submit(self, manifest: Source, *, dry_run: bool = False) -> Outcome:
        return await self._cluster.run_async(verbs.submit(copies.read(manifest), dry_run=dry_run))

    async def stop(self, name: str) -> Outcome:
        return await self._cluster.run_async(verbs.stop(name))

    async def resume(self, name: str) -> Outcome:
        return await self._cluster.run_async(verbs.resume(name))

    async def retry(self, name: str, manifest: Source | None = None) -> Outcome:
        return await self._cluster.run_async(verbs.retry(name, None if manifest is None else copies.read(manifest)))

    async def clone(
        self, name: str, new_name: str, *, output: str | None = None, settings: Mapping[str, Any] | None = None,
        dry_run: bool = False,
    ) -> Outcome:  # fmt: skip
        raw = await self.cloned(name, new_name, output=output, settings=settings)
        return await self._cluster.run_async(verbs.submit(raw, action="cloned", dry_run=dry_run))

    async def cloned(
        self, name: str, new_name: str, *, output: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        return copies.clone((await self.get(name)).raw, new_name, output=output, settings=settings or {})

    async def delete(self, name: str, *, force: bool = False) -> Outcome:
        return await self._cluster.run_async(verbs.delete(name, force=force))

    async def wait(
        self, name: str, ready: Callable[[Job], bool] = lambda job: job.finished, *, timeout: float = DAY,
        every: float = EVERY,
    ) -> Job:  # fmt: skip
        return await self._cluster.run_async(verbs.wait(name, ready, timeout=timeout, every=every))

    async def watch(self, name: str, *, every: float = EVERY) -> AsyncIterator[Job]:
        import asyncio

        last = None
        while True:
            look = verbs.get(name) if last is None else verbs.get_again(name, every=every)
            job = await self._cluster.run_async(look)
            if last is None or job.object != last.object:
                yield job
            if job.finished:
                return
            last = job
            await asyncio.sleep(every)


def _where(cluster: Cluster) -> str:
    parts = [f"namespace {cluster.namespace}" if cluster.namespace else "current namespace"]
    return ", ".join([*parts, *([f"context {cluster.context}"] if cluster.context else [])])
