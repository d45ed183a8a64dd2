"""Which jobs are put into the queue: those of this replica's term, in namespaces that are in sync."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .kube.resources import Key
from .kube.workqueue import WorkQueue
from .state.cache import Cache
from .state.namespace_sync import WatchedNamespaces
from .state.observe import lacks_gang


@dataclass(kw_only=True)
class Dispatcher:
    cache: Cache
    queue: WorkQueue[Key]
    scope: WatchedNamespaces
    acting: bool = False
    """This replica decides about jobs. One that stands by keeps its cache, and no queue."""

    def news(self, key: Key) -> None:
        """Something about the job is new. Those that wait for a gang are looked at first."""
        if self.acting and self.scope.covers(key):
            self.queue.add(key, urgent=lacks_gang(self.cache, key))

    def all_news(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.news(key)
