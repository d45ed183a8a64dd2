"""Keeps the cache equal to what the API server has: events of watches, and lists to compare with."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from .dispatch import Dispatcher
from .kube.client import PAGE, ApiError, Forbidden, Listing, NotFound
from .kube.kopf_watch import Backoff
from .kube.resources import FINETUNEJOBS, WATCHED, Raw, Resource
from .state import cluster_features
from .state.cache import Cache
from .state.namespace_sync import Namespace, WatchedNamespaces

logger = logging.getLogger(__name__)

RESYNC_SECONDS = 600.0
"""Between two comparisons of the whole cache with lists, for whatever a watch may have lost."""

CRD_SECONDS = 5.0
"""Between two looks for the CRD, while it is not installed."""


class Server(cluster_features.Server, Protocol):
    """What is asked of the API server here."""

    def pages(self, resource: Resource, namespace: str | None, *, size: int = PAGE) -> AsyncIterator[Listing]: ...


@dataclass(kw_only=True)
class CacheSync:
    server: Server
    cache: Cache
    scope: WatchedNamespaces
    dispatch: Dispatcher
    synced: asyncio.Event
    """Set once a namespace is in sync."""
    _resyncs: set[asyncio.Task[None]] = field(default_factory=set)

    def fed(self, resource: Resource, kind: str | None, raw: Raw) -> None:
        """An event of a watch."""
        if key := self.cache.feed(resource, kind, raw):
            self.dispatch.news(key)

    def listed(self, resource: Resource, namespace: Namespace) -> None:
        """kopf has listed: the operator lists too, because deletions show only in a comparison."""
        task = asyncio.get_running_loop().create_task(self._resync_patiently(resource, namespace))
        self._resyncs.add(task)
        task.add_done_callback(self._resyncs.discard)

    async def resync(self, resource: Resource, namespace: Namespace) -> int:
        """Compare the cache with a list: what is not in the list was deleted while no watch was open. Its version.

        A watch from before the list is open by now, or one from its version on is opened after it, so nothing between
        the two is missed. The first round of lists is also what the workers wait for, each namespace for its own.
        """
        listing, term = self.cache.listing(resource, namespace), self.scope.term
        try:
            async for page in self.server.pages(resource, namespace):
                self.dispatch.all_news(listing.page(page.items, int(page.version)))
        except (Forbidden, NotFound) as error:
            self.scope.refused(resource, namespace, error.message)
            raise
        self.dispatch.all_news(listing.end())
        if self.scope.listed(resource, namespace, term=term):
            counts = (len(store) for store in self.cache.stores)
            logger.info("%s in sync; in the cache: %d jobs, %d attempts, %d pods", namespace or "all", *counts)
            self.synced.set()
            self.dispatch.all_news([job.owner for job in self.cache.jobs if namespace in (None, job.namespace)])
        return listing.version

    async def list_all(self, namespace: Namespace) -> None:
        for resource in WATCHED:
            await self._resync_patiently(resource, namespace)

    async def run(self) -> None:
        """Until cancelled: resync now and then. A namespace that cannot be listed does not keep the others waiting."""
        try:
            async with asyncio.TaskGroup() as group:
                for namespace in self.scope.namespaces:
                    group.create_task(self._resync_now_and_then(namespace), name=f"resync {namespace or 'all'}")
        finally:
            for task in self._resyncs:
                task.cancel()

    async def discover(self) -> None:
        """Look for optional kinds. A namespace whose jobs we may not see has no say."""
        try:
            self.cache.features = await cluster_features.discover_features(self.server, self.scope.open)
        except ApiError as error:
            logger.warning("the optional kinds of the cluster are not known yet: %s", error)

    async def crd_installed(self, stopped: asyncio.Task[bool]) -> bool:
        """Wait for the CRD; False if stopped before. One namespace whose jobs can be listed is enough."""
        while not stopped.done():
            found = False
            for namespace in self.scope.namespaces:
                try:
                    await anext(self.server.pages(FINETUNEJOBS, namespace, size=1))
                except NotFound:
                    logger.warning("the CRD finetunejobs.finetune.dev is not installed; waiting for it")
                except Forbidden as error:
                    self.scope.refused(FINETUNEJOBS, namespace, error.message)
                except ApiError as error:
                    logger.warning("the FineTuneJobs cannot be listed yet: %s", error)
                else:
                    found = True
            if found:
                return True
            await asyncio.wait([stopped], timeout=CRD_SECONDS * random.uniform(0.8, 1.2))
        return False

    async def _resync_patiently(self, resource: Resource, namespace: Namespace) -> None:
        for pause in Backoff():
            try:
                await self.resync(resource, namespace)
                return
            except ApiError as error:
                level = logging.DEBUG if self.scope.is_refused(resource.plural, namespace) else logging.WARNING
                logger.log(level, "%s could not be listed: %s; retrying in %.0f s", resource.plural, error, pause)
                await asyncio.sleep(pause)

    async def _resync_now_and_then(self, namespace: Namespace) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS * random.uniform(0.9, 1.1))
            await self.discover()
            await self.list_all(namespace)
