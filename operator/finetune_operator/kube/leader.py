"""One of several replicas acts: the one that holds the Lease. The others watch, stay warm and answer probes.

Why no two replicas ever act on one job in two ways:

- In time. A leader acts until `renew` seconds after it *sent* its last successful renewal; others wait `lease` seconds
  from when they *saw* it, each by its own clock (one that runs while a machine sleeps). `Fenced` lets no write begin
  after that, and breaks off one under way; what the kernel still holds of it is dropped (connection.TCP_SECONDS). So
  nothing that an old leader sent arrives later than the lease allows, unless something between holds it back.
- Whatever people do to the Lease. Where it was deleted, the replica that creates it again waits `lease` seconds before
  it acts. So does a replica that finds it without a holder, unless it was released. A holder that finds it gone, or
  held by another, stops.
- In the decision. A status is written only onto the very version that it was decided on (its resourceVersion), and a
  new leader decides only after a fresh list of everything. An attempt's number is in the status before anything is
  done for it. So two replicas cannot both begin an attempt: the second one's status meets Conflict.
- In the action. What follows from a status is named by it: the attempt's Job is `<job>-<number>`, so a creation that
  two replicas send is one Job, and deletions name the uid that they mean. A creation that was held back for longer
  than a whole attempt makes a Job whose number is not the status's: it is deleted at sight (decide).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from .client import AlreadyExists, ApiError, Client, Conflict, Listing, NotFound
from .resources import LEASES, Key, Raw, Resource
from .server_clock import awake

logger = logging.getLogger(__name__)

GIVEN_BACK = 1
"""leaseDurationSeconds of a Lease whose holder has stopped."""

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Election:
    """Which Lease, who we are, and the times in seconds."""

    namespace: str
    identity: str
    name: str = "finetune-operator"
    lease: int = 13
    """Others wait so long before they take it."""
    renew: float = 8.6
    """The holder stops acting so long after its last renewal. Less than `lease`."""
    retry: float = 1.7
    """Between two looks at it, or two renewals."""


class NotLeading(ApiError):
    """This replica may not write (any more)."""


class Leader:
    """Campaigns for ever; runs `work` while it leads."""

    def __init__(self, client: Client, election: Election, *, clock: Clock = awake) -> None:
        self._client = client
        self._election = election
        self._clock = clock
        self._until = float("-inf")
        self._from = float("-inf")
        """Until then another replica may act, by a Lease that was deleted."""
        self._marks: tuple[str, str] = ("", "")
        """renewTime of the last renewal that was answered, and of the last that was sent: a Lease with one is its
        own."""
        self._known: Raw | None = None
        self._seen: tuple[str, float] = ("", 0.0)  # version of the Lease, and since when we know it

    def remaining(self) -> float:
        """Seconds for which this replica may act; 0 if it may not."""
        now = self._clock()
        return max(0.0, self._until - now) if now >= self._from else 0.0

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. `work` is cancelled as soon as the lease may not be renewed in time; it is awaited."""
        try:
            while True:
                if not await self._try() or not self.remaining():
                    await asyncio.sleep(self._election.retry * random.uniform(0.8, 1.2))
                    continue
                logger.info("%s acquired leadership", self._election.identity)
                await self._serve(work)
                logger.warning("%s lost leadership", self._election.identity)
        finally:
            await self._release()

    async def _serve(self, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(work())
        try:
            while remaining := self.remaining():
                await asyncio.wait({task}, timeout=min(self._election.retry, remaining))
                if task.done():
                    task.result()
                    return
                await self._try()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _try(self) -> bool:
        """One look at the Lease: take it, or renew it. True if this replica holds it."""
        limit = self._election.retry * 2
        if remaining := self.remaining():
            limit = min(limit, remaining)
        try:
            async with asyncio.timeout(limit):
                return await self._take()
        except (ApiError, TimeoutError) as error:
            logger.info("the Lease: %s", str(error) or "no answer")
            return False

    async def _take(self, *, again: bool = True) -> bool:
        """Raises ApiError. A renewal is one request, unless another process wrote the Lease, or the answer was lost."""
        chosen = self._election
        if self._known is None:
            try:
                self._known = await self._client.get(LEASES, (chosen.namespace, chosen.name))
            except NotFound:
                return await self._create()
            if self._known.get("spec", {}).get("holderIdentity") != chosen.identity:
                self._until = float("-inf")
        held = self._known
        spec, version = held.get("spec", {}), held["metadata"]["resourceVersion"]
        ours = spec.get("holderIdentity") == chosen.identity and spec.get("renewTime") in self._marks
        if not ours and not self._free(spec, version):
            self._known = None  # look at it again the next time
            return False
        started = self._clock()
        body = {**held, "spec": self._spec(spec, ours=ours)}
        mark = body["spec"]["renewTime"]
        self._known, self._marks = None, (self._marks[0], mark)
        try:
            self._known = await self._client.replace(LEASES, body)
        except NotFound:
            self._until = float("-inf")
            return False
        except Conflict:  # by our own renewal whose answer was lost, or by somebody else: look at once
            return await self._take(again=False) if again else False
        self._until, self._marks = started + chosen.renew, (mark, mark)
        return True

    async def _create(self) -> bool:
        chosen, started = self._election, self._clock()
        self._until = float("-inf")
        meta = {"name": chosen.name, "namespace": chosen.namespace}
        body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta}
        try:
            self._known = await self._client.create(LEASES, body | {"spec": self._spec({}, ours=False)})
        except AlreadyExists:
            return False
        mark = self._known["spec"]["renewTime"]
        self._marks = (mark, mark)
        self._from = self._clock() + chosen.lease
        self._until = started + chosen.renew
        return True

    def _free(self, spec: Raw, version: str) -> bool:
        """Released, or not renewed for as long as its holder promised to be silent at most, by our own clock. A Lease
        that only lost its holder was not released: its holder was removed by hand, and may act still."""
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        silent = self._clock() - self._seen[1]
        given_back = not spec.get("holderIdentity") and spec.get("leaseDurationSeconds") == GIVEN_BACK
        return given_back or silent > max(spec.get("leaseDurationSeconds") or 0, self._election.lease)

    def _spec(self, old: Raw, *, ours: bool) -> Raw:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._election.identity,
            "leaseDurationSeconds": self._election.lease,
            "acquireTime": old.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0) + (0 if ours else 1),
        }

    async def _release(self) -> None:
        """So that another takes it at once, and need not wait."""
        if self._known is None or self._until <= self._clock():
            return
        self._until = float("-inf")
        spec = {**self._known["spec"], "holderIdentity": "", "leaseDurationSeconds": GIVEN_BACK}
        given = {**self._known, "spec": spec}
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(self._election.retry):
                await self._client.replace(LEASES, given)


@dataclass(frozen=True)
class Fenced:
    """A client whose writes begin, and end, only while `leader` leads. They raise NotLeading else."""

    inner: Client
    leader: Leader

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "") -> Listing:
        return await self.inner.list(resource, namespace, selector=selector, fields=fields)

    async def get(self, resource: Resource, key: Key) -> Raw:
        return await self.inner.get(resource, key)

    async def create(self, resource: Resource, body: Raw) -> Raw:
        return await self._while_leading(self.inner.create(resource, body))

    async def replace_status(self, body: Raw) -> Raw:
        return await self._while_leading(self.inner.replace_status(body))

    async def merge(self, resource: Resource, key: Key, body: Raw) -> Raw:
        return await self._while_leading(self.inner.merge(resource, key, body))

    async def replace(self, resource: Resource, body: Raw) -> Raw:
        return await self._while_leading(self.inner.replace(resource, body))

    async def delete(self, resource: Resource, key: Key, *, uid: str) -> Raw | None:
        return await self._while_leading(self.inner.delete(resource, key, uid=uid))

    async def _while_leading(self, write: Coroutine[Any, Any, T]) -> T:
        remaining = self.leader.remaining()
        if not remaining:
            write.close()
            raise NotLeading("another replica is the leader")
        try:
            async with asyncio.timeout(remaining):
                return await write
        except TimeoutError as error:
            raise NotLeading("the lease ended before the answer came") from error
