"""What the API server last said about our objects, as typed views.

Fed by the watches and by the answers to our own writes: a view is replaced only by a newer resourceVersion of the same
object, so a decision never falls back behind a write that was already made. Watches can miss a deletion while they are
down; `replace` drops what a list no longer holds, and a uid that was dropped never comes back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from finetune_api.plan import ProgressReport
from finetune_api.spec import FineTuneJobSpec

from .offers import Offers
from .resources import FINETUNEJOBS, JOBS, PODS, Key, Raw, Resource
from .views import ChildJob, JobView, Pod, view_child_job, view_job, view_pod

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


class Store(Generic[V]):
    """All objects of one kind, found by the FineTuneJob that they belong to."""

    def __init__(self, view: Callable[[Raw], V]) -> None:
        self._view = view
        self._by_owner: dict[Key, dict[str, V]] = {}
        self._buried: dict[str, float] = {}

    def of(self, owner: Key) -> tuple[V, ...]:
        return tuple(self._by_owner.get(owner, {}).values())

    def __iter__(self) -> Iterator[V]:
        for views in list(self._by_owner.values()):
            yield from views.values()

    def __len__(self) -> int:
        return sum(map(len, self._by_owner.values()))

    def put(self, raw: Raw) -> Key | None:
        """The key whose picture changed; None if this was no news: older, or of something that no decision uses."""
        if raw["metadata"].get("uid") in self._buried:
            return None
        new = self._read(raw)
        if new is None:
            return None
        known = self._by_owner.get(new.owner, {}).get(new.name)
        if known is not None and known.version >= new.version:
            return None
        self._by_owner.setdefault(new.owner, {})[new.name] = new
        same = known is not None and replace(known, version=new.version) == new  # type: ignore[type-var]
        return None if same else new.owner

    def remove(self, raw: Raw) -> Key | None:
        """It was deleted."""
        gone = self._read(raw)
        if gone is None:
            return None
        self._buried[gone.uid] = time.monotonic()
        known = self._by_owner.get(gone.owner, {}).get(gone.name)
        if known is None or known.uid != gone.uid:
            return None
        self._drop(known)
        return gone.owner

    def replace(self, raws: Iterable[Raw], *, namespace: str | None, version: int) -> set[Key]:
        """A full list as of `version`: takes what is newer and drops what the list does not hold. Keys that changed."""
        items = list(raws)
        changed = {key for raw in items if (key := self.put(raw))}
        return changed | self.sweep({raw["metadata"]["uid"] for raw in items}, namespace=namespace, version=version)

    def sweep(self, listed: set[str], *, namespace: str | None, version: int) -> set[Key]:
        """Drops what is not among the uids of a full list as of `version`. Keys that changed."""
        changed: set[Key] = set()
        for known in list(self):
            here = namespace is None or known.namespace == namespace
            if here and known.uid not in listed and known.version <= version:
                self._buried[known.uid] = time.monotonic()
                self._drop(known)
                changed.add(known.owner)
        horizon = time.monotonic() - BURIED_SECONDS
        self._buried = {uid: when for uid, when in self._buried.items() if when > horizon}
        return changed

    def _read(self, raw: Raw) -> V | None:
        """None for what no version that we know has written: it is left alone."""
        try:
            return self._view(raw)
        except (KeyError, TypeError, ValueError) as error:
            meta = raw.get("metadata", {})
            logger.error("%s/%s cannot be understood: %s", meta.get("namespace"), meta.get("name"), error)
            return None

    def _drop(self, view: V) -> None:
        views = self._by_owner[view.owner]
        del views[view.name]
        if not views:
            del self._by_owner[view.owner]


@dataclass(frozen=True)
class Report:
    """The latest answer of node 0, and whose it was."""

    job_uid: str
    progress: ProgressReport


@dataclass(frozen=True)
class Heard:
    """When node 0 of an attempt last answered."""

    job_uid: str
    attempt: int
    at: datetime


@dataclass(frozen=True)
class Refusal:
    """Why the Job controller could not make pods, in the API server's words."""

    child_uid: str
    message: str


@dataclass(frozen=True)
class Hold:
    """Why a queue does not let a Job go, in its words."""

    child_uid: str
    message: str


@dataclass(frozen=True)
class Preparation:
    """The latest event of a pod that does not run yet."""

    pod_uid: str
    reason: str
    message: str


@dataclass
class Cache:
    jobs: Store[JobView] = field(default_factory=lambda: Store(view_job))
    children: Store[ChildJob] = field(default_factory=lambda: Store(view_child_job))
    pods: Store[Pod] = field(default_factory=lambda: Store(view_pod))
    specs: dict[tuple[str, int, bool], tuple[FineTuneJobSpec | None, str]] = field(default_factory=dict)
    """What observe read, by the job's uid and generation, and how thoroughly."""
    reports: dict[Key, Report] = field(default_factory=dict)
    refusals: dict[Key, Refusal] = field(default_factory=dict)
    offers: Offers = field(default_factory=Offers)
    holds: dict[Key, Hold] = field(default_factory=dict)
    preparations: dict[Key, Preparation] = field(default_factory=dict)
    grouped: dict[Key, str] = field(default_factory=dict)
    """uid of the latest Job whose pods' group was made."""
    probe_refused: dict[Key, datetime] = field(default_factory=dict)
    """When a probe for more nodes could not be made."""
    remains: dict[Key, tuple[Pod, ...]] = field(default_factory=dict)
    """Pods of a job's latest attempt to lose any that ended badly and are no more: the only ones to tell why it failed,
    where all of them were deleted."""
    heard: dict[Key, Heard] = field(default_factory=dict)
    heard_anybody: datetime | None = None

    def store(self, resource: Resource) -> Store[JobView] | Store[ChildJob] | Store[Pod]:
        match resource.plural:
            case FINETUNEJOBS.plural:
                return self.jobs
            case JOBS.plural:
                return self.children
            case PODS.plural:
                return self.pods
        raise KeyError(resource.plural)

    @property
    def stores(self) -> tuple[Store[JobView], Store[ChildJob], Store[Pod]]:
        return self.jobs, self.children, self.pods

    def feed(self, resource: Resource, kind: str | None, raw: Raw) -> Key | None:
        """One event of a watch. The key to look at, if it told something new."""
        store = self.store(resource)
        if kind != "DELETED":
            return store.put(raw)
        if resource.plural == PODS.plural:
            self._remember(raw)
        return store.remove(raw)

    def _remember(self, raw: Raw) -> None:
        try:
            pod = view_pod(raw)
        except (KeyError, TypeError, ValueError):
            return
        if pod.ended is not None and pod.ended.exit_code:
            known = self.remains.get(pod.owner, ())
            same = (p for p in known if (p.job_uid, p.attempt) == (pod.job_uid, pod.attempt))
            self.remains[pod.owner] = (*same, pod)
