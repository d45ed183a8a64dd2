"""All objects of one kind that the API server has reported, as typed views, newest wins.

A view is replaced only by a newer resourceVersion of the same object, and an event that is older than the deletion of
its object changes nothing. Two things bring an object back: an event that is newer than its deletion (a label was taken
off it and put back, which a watch reports as a deletion), and a history that was reset.

A list is consistent: it can be no older than what was seen before it was asked for. One that is shows that the API
server's storage was restored to an earlier state. Then versions that were seen say nothing any more, and the list is
believed as it is (`Listing`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from finetune_api.text import one_line
from finetune_operator.kube.resources import Key, Raw

logger = logging.getLogger(__name__)

BURIED_SECONDS = 600.0
"""For how long a late event of a dropped object could still arrive."""


class View(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def owner(self) -> Key: ...


V = TypeVar("V", bound=View)


@dataclass(frozen=True)
class _Burial:
    version: int
    """Up to which all news of the object is late."""
    at: float


class Store(Generic[V]):
    """All objects of one kind, found by the FineTuneJob that they belong to. `dropped` hears what each last was,
    `restored` that the history went back."""

    def __init__(
        self,
        view: Callable[[Raw], V],
        *,
        dropped: Callable[[V], None] = lambda _: None,
        restored: Callable[[], object] = lambda: None,
    ) -> None:
        self._view = view
        self._dropped = dropped
        self._restored = restored
        self._by_owner: dict[Key, dict[str, V]] = {}
        self._buried: dict[str, _Burial] = {}
        self._stale: set[str] = set()
        """uids of views from before the history was reset: whatever comes of them now is newer."""
        self.newest = 0
        """The greatest version that was seen of any."""

    def of(self, owner: Key) -> tuple[V, ...]:
        return tuple(self._by_owner.get(owner, {}).values())

    def __iter__(self) -> Iterator[V]:
        for views in list(self._by_owner.values()):
            yield from views.values()

    def __len__(self) -> int:
        return sum(map(len, self._by_owner.values()))

    def put(self, raw: Raw) -> Key | None:
        """The key whose picture changed; None if this was not new: older, or of something that no decision uses."""
        new = self._read(raw)
        return self._keep(new) if new is not None else None

    def remove(self, raw: Raw) -> Key | None:
        """It was deleted."""
        gone = self._read(raw)
        if gone is None:
            return None
        known = self._by_owner.get(gone.owner, {}).get(gone.name)
        if known is not None and known.uid == gone.uid and self._newer(known, gone.version):
            return None  # it has come back since
        self.newest = max(self.newest, gone.version)
        self._bury(gone, gone.version)
        if known is not None and known.uid == gone.uid:
            self._drop(gone)
            return gone.owner
        self._dropped(gone)
        return None

    def lost(self, view: V, version: int) -> None:
        """The API server was asked for it by its name, and has no such object as of `version`."""
        known = self._by_owner.get(view.owner, {}).get(view.name)
        if known is not None and known.uid == view.uid and not self._newer(known, version):
            self._bury(known, version)
            self._drop(known)

    def answered(self, raw: Raw, *, before: int) -> Key | None:
        """An answer to a question that was asked when `before` was the newest version: it can be no older than what was
        known of the object by then, unless the history went back."""
        new = self._read(raw)
        if new is None:
            return None
        known = self._by_owner.get(new.owner, {}).get(new.name)
        if known is not None and self._newer(known, new.version) and known.version <= before:
            logger.warning("the API server's history was reset: %s/%s is older than before", new.namespace, new.name)
            self.rewound()
        buried = self._buried.get(new.uid)
        if buried is not None and buried.version <= before:
            del self._buried[new.uid]  # it is there, though a watch or a list of what has our label told otherwise
        return self._keep(new)

    def settled(self, raw: Raw) -> bool:
        """The object is as it was read, or known to be newer; False where something newer says that it is gone."""
        buried = self._buried.get(raw["metadata"]["uid"])
        return buried is None or buried.version <= int(raw["metadata"]["resourceVersion"])

    def rewound(self) -> None:
        """The API server's storage was restored to an earlier state: known versions say nothing any more."""
        self._restored()
        self.newest = 0
        self._buried.clear()
        self._stale = {view.uid for view in self}

    def _newer(self, known: V, version: int) -> bool:
        return known.version > version and known.uid not in self._stale

    def _keep(self, new: V) -> Key | None:
        buried = self._buried.get(new.uid)
        if buried is not None and new.version < buried.version:
            return None
        known = self._by_owner.get(new.owner, {}).get(new.name)
        if known is not None and (self._newer(known, new.version) or known.version == new.version):
            return None
        self._buried.pop(new.uid, None)
        if known is not None:
            self._stale.discard(known.uid)
        self.newest = max(self.newest, new.version)
        self._by_owner.setdefault(new.owner, {})[new.name] = new
        same = known is not None and replace(known, version=new.version) == new  # type: ignore[type-var]
        return None if same else new.owner

    def _sweep(self, listed: set[str], *, namespace: str | None, version: int) -> set[Key]:
        """Drops what is not among the uids of a full list as of `version`. Keys that changed."""
        changed: set[Key] = set()
        for known in list(self):
            here = namespace is None or known.namespace == namespace
            if here and known.uid not in listed and not self._newer(known, version):
                self._bury(known, version)
                self._drop(known)
                changed.add(known.owner)
        horizon = time.monotonic() - BURIED_SECONDS
        self._buried = {uid: each for uid, each in self._buried.items() if each.at > horizon}
        return changed

    def _read(self, raw: Raw) -> V | None:
        """None for what no version that we know has written: it is left alone."""
        try:
            return self._view(raw)
        except Exception as error:
            meta = raw.get("metadata", {})
            who = f"{meta.get('namespace')}/{meta.get('name')}"
            logger.error("%s cannot be understood: %s", one_line(who), one_line(f"{type(error).__name__}: {error}"))
            return None

    def _bury(self, view: V, version: int) -> None:
        self._buried[view.uid] = _Burial(version, time.monotonic())

    def _drop(self, view: V) -> None:
        """`view`: as it last was."""
        self._stale.discard(view.uid)
        views = self._by_owner[view.owner]
        del views[view.name]
        if not views:
            del self._by_owner[view.owner]
        self._dropped(view)


class Listing(Generic[V]):
    """One list of all objects of a kind, page by page. Made before it is asked for."""

    def __init__(self, store: Store[V], namespace: str | None) -> None:
        self._store = store
        self._namespace = namespace
        self._before = store.newest
        self._listed: set[str] = set()
        self.version = 0

    def page(self, raws: Iterable[Raw], version: int) -> set[Key]:
        """Keys that changed."""
        if not self.version and version < self._before:
            logger.warning(
                "the API server's history was reset, from %d to %d: listing everything again", self._before, version
            )
            self._store.rewound()
        self.version = version
        changed: set[Key] = set()
        for raw in raws:
            self._listed.add(raw["metadata"]["uid"])
            if key := self._store.answered(raw, before=self._before):
                changed.add(key)
        return changed

    def end(self) -> set[Key]:
        """After the last page: what was not in any has gone."""
        self._store.newest = max(self._store.newest, self.version)
        return self._store._sweep(self._listed, namespace=self._namespace, version=self.version)
