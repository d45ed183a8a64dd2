"""List, then watch from there on, for ever: how the cache follows Jobs and pods.

These bring ten times as many events as the FineTuneJobs, which kopf watches (kopf_watch): a job of two pods has about
twenty in its life. So they are read here, in the operator's own loop, with nothing between the line and the cache.

A watch that ends is continued from its last version. Only when the API server cannot do that, a list is
made again, and what it does not hold has gone meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from .client import ApiError, TooManyRequests, Unavailable, WatchEvent
from .kopf_watch import TOO_NEW, Backoff, Fed, Place
from .resources import Resource

logger = logging.getLogger(__name__)

SETTLED = 30.0
"""A watch that lasted so many seconds, or brought something, is begun again at once."""


class Stream(Protocol):
    def watch(self, resource: Resource, namespace: str | None, version: int) -> AsyncIterator[WatchEvent]: ...


@dataclass(frozen=True, kw_only=True)
class Reflector:
    """`listed` makes a list, compares the cache with it and returns its version."""

    stream: Stream
    listed: Callable[[Resource, str | None], Awaitable[int]]
    fed: Fed
    heard: dict[Place, float]
    """When each watch was last answered or brought an event (monotonic seconds)."""

    async def run(self, places: Iterable[tuple[Resource, str | None]]) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for resource, namespace in places:
                group.create_task(self._follow(resource, namespace), name=f"watch {resource.plural} {namespace or ''}")

    async def _follow(self, resource: Resource, namespace: str | None) -> None:
        version, pauses = 0, iter(Backoff())
        while True:
            begin, news = time.monotonic(), False
            try:
                version = version or await self.listed(resource, namespace)
                async for event in self.stream.watch(resource, namespace, version):
                    self.heard[resource.plural, namespace] = time.monotonic()
                    version = self._take(resource, event, version)
                    news = news or event.raw is not None
            except ApiError as error:
                logger.warning("the watch of %s: %s", resource.plural, error)
                version = version if _can_go_on(error) else 0
            if news or time.monotonic() - begin > SETTLED:
                pauses = iter(Backoff())  # what breaks now and then is not in trouble
            else:
                await asyncio.sleep(next(pauses))

    def _take(self, resource: Resource, event: WatchEvent, version: int) -> int:
        """The version from which to continue."""
        if event.raw is None:
            return version
        if event.kind != "BOOKMARK":
            try:
                self.fed(resource, event.kind, event.raw)
            except Exception:
                logger.exception("an event could not be processed")
        return int(event.raw["metadata"].get("resourceVersion", version))


def _can_go_on(error: ApiError) -> bool:
    """No answer, or one that passes. A server that does not know the version (410, or 504 for one that is too new) is
    asked for a list."""
    return isinstance(error, (Unavailable, TooManyRequests)) and error.status != TOO_NEW
