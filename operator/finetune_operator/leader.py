"""One of several replicas acts: the one that holds the Lease. The others watch, stay warm and answer probes.

Why no two replicas ever act on one job in two ways:

- In time. A leader acts until `renew` seconds after it *sent* its last successful renewal; others wait `lease` seconds
  from when they *saw* it, each by its own clock (one that goes on while a machine sleeps). `Fenced` lets no write begin
  after that, and breaks off one under way; what the kernel still holds of it is dropped (connection.TCP_SECONDS). So
  nothing that an old leader sent arrives later than the lease allows, unless something between holds it back.
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
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from .client import AlreadyExists, ApiError, Client, Conflict, Listing, NotFound
from .resources import LEASES, Key, Raw, Resource

logger = logging.getLogger(__name__)

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


def awake() -> float:
    """Seconds, going on while the machine sleeps, where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Leader:
    """Campaigns for ever; runs `work` while it leads."""

    def __init__(self, client: Client, election: Election, *, clock: Clock = awake) -> None:
        self._client = client
        self._election = election
        self._clock = clock
        self._until = float("-inf")
        self._known: Raw | None = None
        self._seen: tuple[str, float] = ("", 0.0)  # version of the Lease, and since when we know it

    def remaining(self) -> float:
        """Seconds for which this replica may act; 0 if it may not."""
        return max(0.0, self._until - self._clock())

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. `work` is cancelled as soon as the lease may not be renewed in time; it is awaited."""
        try:
            while True:
                if not await self._try():
                    await asyncio.sleep(self._election.retry * random.uniform(0.8, 1.2))
                    continue
                logger.info("%s leads now", self._election.identity)
                await self._serve(work)
                logger.warning("%s leads no more", self._election.identity)
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
        """One look at the Lease: take it, or renew it. True if it is ours."""
        limit = self._election.retry * 2
        if remaining := self.remaining():
            limit = min(limit, remaining)
        try:
            async with asyncio.timeout(limit):
                return await self._take()
        except (ApiError, TimeoutError) as error:
            logger.info("the Lease: %s", str(error) or "no answer")
            return False

    async def _take(self) -> bool:
        """Raises ApiError. A renewal is one request, unless somebody else wrote the Lease, or our answer was lost."""
        chosen = self._election
        if self._known is None:
            try:
                self._known = await self._client.get(LEASES, (chosen.namespace, chosen.name))
            except NotFound:
                return await self._create()
        held = self._known
        spec, version = held.get("spec", {}), held["metadata"]["resourceVersion"]
        ours = spec.get("holderIdentity") == chosen.identity
        if not ours and not self._free(spec, version):
            self._known = None  # look at it again the next time
            return False
        started = self._clock()
        body = {**held, "spec": self._spec(spec, ours=ours)}
        self._known = None
        try:
            self._known = await self._client.replace(LEASES, body)
        except Conflict:
            return False
        self._until = started + chosen.renew
        return True

    async def _create(self) -> bool:
        chosen, started = self._election, self._clock()
        meta = {"name": chosen.name, "namespace": chosen.namespace}
        body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta}
        try:
            self._known = await self._client.create(LEASES, body | {"spec": self._spec({}, ours=False)})
        except AlreadyExists:
            return False
        self._until = started + chosen.renew
        return True

    def _free(self, spec: Raw, version: str) -> bool:
        """Given back, or not renewed for as long as its holder promised to be silent at most, by our own clock."""
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        silent = self._clock() - self._seen[1]
        return not spec.get("holderIdentity") or silent > spec.get("leaseDurationSeconds", self._election.lease)

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
        if self._known is None or not self.remaining():
            return
        self._until = float("-inf")
        given = {**self._known, "spec": {**self._known["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
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
            raise NotLeading("another replica leads")
        try:
            async with asyncio.timeout(remaining):
                return await write
        except TimeoutError as error:
            raise NotLeading("the lease ended before the answer came") from error
