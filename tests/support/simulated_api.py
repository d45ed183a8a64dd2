# ruff: noqa: ARG002  (the stand-in has the methods of a Client)
"""An API server in memory, in virtual time: objects with versions, a history that watches read late, and a client."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar, cast

import orjson

from finetune_operator.kube.client import AlreadyExists, Conflict, Listing, NotFound, Unavailable
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, SERVICES, Key, Raw, Resource
from finetune_operator.state.cache import Cache

T = TypeVar("T")
NAMESPACE = "ml"
RESOURCES = {each.plural: each for each in (FINETUNEJOBS, JOBS, PODS, SERVICES)}


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Its result. Nothing in virtual time waits."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise AssertionError("it waits for something real")


@dataclass(frozen=True)
class Told:
    """One event of a watch."""

    version: int
    at: float
    plural: str
    before: Raw | None
    after: Raw | None


@dataclass
class Api:
    """`now`: virtual seconds."""

    now: float = 0.0
    version: int = 1000
    objects: dict[tuple[str, str], Raw] = field(default_factory=dict)
    history: list[Told] = field(default_factory=list)
    made: int = 0

    def get(self, resource: Resource, name: str) -> Raw | None:
        return self.objects.get((resource.plural, name))

    def all(self, resource: Resource) -> list[Raw]:
        return [raw for (plural, _), raw in self.objects.items() if plural == resource.plural]

    def put(self, resource: Resource, raw: Raw) -> Raw:
        """Creates or changes it."""
        key = (resource.plural, raw["metadata"]["name"])
        before, raw = self.objects.get(key), copied(raw)
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        if before is None:
            self.made += 1
            raw["metadata"].setdefault("uid", f"uid-{self.made}")
        self.objects[key] = raw
        self.history.append(Told(self.version, self.now, resource.plural, before, raw))
        return raw

    def change(self, resource: Resource, name: str, **parts: Any) -> None:
        """Merges the parts, one level deep."""
        raw = copied(self.get(resource, name))
        if raw is not None:
            for part, new in parts.items():
                raw[part] = {**raw.get(part, {}), **new} if isinstance(new, dict) else new
            self.put(resource, raw)

    def drop(self, resource: Resource, name: str) -> None:
        before = self.objects.pop((resource.plural, name), None)
        if before is not None:
            self.version += 1
            self.history.append(Told(self.version, self.now, resource.plural, before, None))

    def snapshot(self) -> tuple[int, dict[tuple[str, str], Raw]]:
        return self.version, dict(self.objects)

    def restore(self, taken: tuple[int, dict[tuple[str, str], Raw]]) -> None:
        """The storage as it was; watches break."""
        self.version, objects = taken
        self.objects = dict(objects)
        self.history.clear()


def copied(raw: T) -> T:
    """As it comes out of a request: JSON, and nothing that two share."""
    return cast(T, orjson.loads(orjson.dumps(raw)))


def matches(raw: Raw | None, selector: str) -> bool:
    if raw is None:
        return False
    label, _, value = selector.partition("=")
    labels = raw["metadata"].get("labels", {})
    return not selector or (labels.get(label) == value if value else label in labels)


@dataclass
class ChaosClient:
    """Quorum reads and writes of one replica. `cut`: it reaches nobody. `leads`: its writes are let through."""

    api: Api
    cut: bool = False
    leads: bool = True
    writes: list[str] = field(default_factory=list)

    def _there(self, write: str = "") -> None:
        if self.cut or (write and not self.leads):
            raise Unavailable("cut off")
        if write:
            self.writes.append(write)

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "") -> Listing:
        self._there()
        if resource.plural not in RESOURCES:
            return Listing([], str(self.api.version))
        found = [raw for raw in self.api.all(resource) if matches(raw, selector or resource.selector)]
        return Listing(copied(found), str(self.api.version))

    async def get(self, resource: Resource, key: Key) -> Raw:
        self._there()
        found = self.api.get(resource, key[1])
        if found is None:
            raise NotFound(key[1])
        return copied(found)

    async def create(self, resource: Resource, body: Raw) -> Raw:
        self._there(f"create {resource.plural}")
        if resource.plural not in RESOURCES:
            return body
        if self.api.get(resource, body["metadata"]["name"]):
            raise AlreadyExists(body["metadata"]["name"], status=409)
        return copied(self.api.put(resource, body))

    async def replace_status(self, body: Raw) -> Raw:
        self._there("status")
        meta = body["metadata"]
        found = self.api.get(FINETUNEJOBS, meta["name"])
        if found is None:
            raise NotFound(meta["name"])
        if (found["metadata"]["uid"], found["metadata"]["resourceVersion"]) != (meta["uid"], meta["resourceVersion"]):
            raise Conflict("changed")
        return copied(self.api.put(FINETUNEJOBS, {**found, "status": body["status"]}))

    async def merge(self, resource: Resource, key: Key, body: Raw) -> Raw:
        self._there("event")
        return body

    async def replace(self, resource: Resource, body: Raw) -> Raw:
        raise AssertionError("only Leases are replaced")

    async def delete(self, resource: Resource, key: Key, *, uid: str) -> Raw | None:
        self._there(f"delete {resource.plural}")
        found = self.api.get(resource, key[1])
        if found is None or found["metadata"]["uid"] != uid:
            return None
        self.api.change(resource, key[1], metadata={"deletionTimestamp": ""})
        return copied(self.api.get(resource, key[1]))


@dataclass
class Watch:
    """One kind, as one replica is told of it: `delay` seconds late, from where its last list ended."""

    api: Api
    cache: Cache
    resource: Resource
    delay: float = 0.0
    broken: bool = True
    version: int = 0

    def tell(self) -> set[Key]:
        """Keys with news by now. A broken watch begins with a list; one from a version that is yet to come, too."""
        if self.broken or self.version > self.api.version:
            self.broken = False
            listing = self.cache.listing(self.resource, None)
            raws = [raw for raw in self.api.all(self.resource) if matches(raw, self.resource.selector)]
            changed = listing.page(copied(raws), self.api.version) | listing.end()
            self.version = self.api.version
            return changed
        news: set[Key] = set()
        history = self.api.history
        first = bisect_right(history, self.version, key=lambda told: told.version)
        for told in islice(history, first, None):
            if told.plural != self.resource.plural:
                continue
            if told.at > self.api.now - self.delay:
                break
            self.version = told.version
            if key := self._event(told):
                news.add(key)
        return news

    def _event(self, told: Told) -> Key | None:
        was, now = matches(told.before, self.resource.selector), matches(told.after, self.resource.selector)
        if now and told.after is not None:
            return self.cache.feed(self.resource, "MODIFIED" if was else "ADDED", copied(told.after))
        if was and told.before is not None:
            gone = copied(told.before)
            gone["metadata"]["resourceVersion"] = str(told.version)
            return self.cache.feed(self.resource, "DELETED", gone)
        return None
