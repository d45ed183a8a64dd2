"""How the operator is: its pages, and what makes it unhealthy or not ready."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from finetune_api.text import one_line

from .health import OLDEST_KEY, OLDEST_TURN, OLDEST_WATCH, Guard, Running, serve
from .kube.connection import NotConfigured
from .kube.kopf_watch import Watcher
from .kube.resources import Key
from .kube.workqueue import WorkQueue
from .state.namespace_sync import WatchedNamespaces

logger = logging.getLogger(__name__)

PULSE_SECONDS = 5.0


@dataclass(kw_only=True)
class HealthChecks:
    listen: str
    """`host:port` of the pages; empty: none."""
    guard: Guard
    registry: CollectorRegistry
    watcher: Watcher
    scope: WatchedNamespaces
    queue: WorkQueue[Key]
    synced: asyncio.Event
    turned: float | None = None
    """When the event loop last came by (monotonic seconds)."""

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """The pages, while the block runs. NotConfigured if nothing can listen there."""
        if not self.listen:
            yield
            return
        try:
            runner = await serve(
                self.listen,
                registry=self.registry,
                healthy=self.unhealthy,
                ready=self.unready,
                guard=self.guard,
            )
        except OSError as error:
            raise NotConfigured(f"cannot listen on {self.listen}: {error.strerror or error}") from error
        pulse = asyncio.create_task(self._pulse(runner))
        try:
            yield
        finally:
            pulse.cancel()
            await runner.cleanup()

    async def _pulse(self, runner: Running) -> None:
        """For ever: shows that the loop turns, and takes up another certificate."""
        told = ""
        while True:
            self.turned = time.monotonic()
            try:
                runner.renew()
            except OSError as error:
                if (problem := one_line(error)) != told:
                    logger.warning("the certificate for /metrics cannot be read: %s", problem)
                told = problem
            await asyncio.sleep(PULSE_SECONDS)

    def unhealthy(self) -> str:
        """What is wrong; empty if nothing is. Called in any thread."""
        if self.turned is not None and (age := time.monotonic() - self.turned) > OLDEST_TURN:
            return f"the event loop has been blocked for {age:.0f} s"
        for (plural, namespace), age in self.watcher.age_seconds().items():
            if age > OLDEST_WATCH and not self.scope.is_refused(plural, namespace):
                return f"the watch of {plural} in {namespace or 'all namespaces'} is silent for {age:.0f} s"
        if (age := self.queue.oldest_seconds()) > OLDEST_KEY and self.synced.is_set():
            return f"a job waits for {age:.0f} s"
        return ""

    def unready(self) -> str:
        """One namespace in sync is enough."""
        return "" if self.synced.is_set() else self.scope.complaints or "not in sync with the API server yet"
