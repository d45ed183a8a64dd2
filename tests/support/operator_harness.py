"""An operator under test on the real API server. A pytest plugin.

`Operator` runs one in a thread of its own, as the service account that operator/rbac.yaml describes. `Dying` is a
client that ends for good after so many writes.

Fixtures: `kube` in a namespace of the test's own, and `start`, which starts operators that the test's end stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api.admin_policy import AdminPolicy
from finetune_operator.kube.client import Client, Listing
from finetune_operator.kube.connection import connect
from finetune_operator.kube.leader import GIVEN_BACK, Election
from finetune_operator.kube.resources import LEASES, Key, Raw, Resource
from finetune_operator.service import Options, Service
from finetune_operator.state.observe import Defaults
from tests.cluster.rig import Rig
from tests.support.kube_client import Kube, Loop, wait_for
from tests.support.operator_rbac import allow


class Killed(Exception):
    """The operator is no more; what its remains try to do reaches nobody."""


@dataclass
class Dying:
    """Counts writes; after `writes` of them nothing goes through any more, as after a SIGKILL."""

    inner: Client
    writes: int | None = None
    made: list[str] = field(default_factory=list)

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "") -> Listing:
        self._alive()
        return await self.inner.list(resource, namespace, selector=selector, fields=fields)

    async def get(self, resource: Resource, key: Key) -> Raw:
        self._alive()
        return await self.inner.get(resource, key)

    async def create(self, resource: Resource, body: Raw) -> Raw:
        self._count(f"create {resource.plural}")
        return await self.inner.create(resource, body)

    async def replace_status(self, body: Raw) -> Raw:
        self._count("update finetunejobs/status")
        return await self.inner.replace_status(body)

    async def merge(self, resource: Resource, key: Key, body: Raw) -> Raw:
        self._count(f"patch {resource.plural}")
        return await self.inner.merge(resource, key, body)

    async def replace(self, resource: Resource, body: Raw) -> Raw:
        self._count(f"update {resource.plural}")
        return await self.inner.replace(resource, body)

    async def delete(self, resource: Resource, key: Key, *, uid: str) -> Raw | None:
        self._count(f"delete {resource.plural}")
        return await self.inner.delete(resource, key, uid=uid)

    def _alive(self) -> None:
        if self.dead:
            raise Killed

    @property
    def dead(self) -> bool:
        return self.writes is not None and len(self.made) >= self.writes

    def _count(self, what: str) -> None:
        self._alive()
        self.made.append(what)


class Operator:
    """Running from construction to `stop`."""

    def __init__(
        self,
        kubeconfig: Path,
        *namespaces: str,
        die_after: int | None = None,
        listen: str = "",
        election: Election | None = None,
        policy: AdminPolicy | None = None,
        peers: tuple[Raw, ...] | None = None,
    ) -> None:
        self._loop = Loop()
        defaults = Defaults(image="trainer:test", grow_after=0.5, policy=policy or AdminPolicy(), peers=peers)
        options = Options(namespaces=namespaces, listen=listen, workers=4, defaults=defaults, election=election)
        self.client: Dying | None = None

        def wrap(client: Client) -> Client:
            self.client = Dying(client, writes=die_after)
            return self.client

        async def build() -> Service:
            self._stop = asyncio.Event()
            return Service(await connect(str(kubeconfig)), options, wrap=wrap)

        self.service = self._loop.call(build())
        self._run = self._loop.submit(self.service.run(self._stop))
        wait_for(lambda: self.service.synced.is_set() or self.dead or self._run.done(), what="the operator in sync")

    @property
    def writes(self) -> Counter[str]:
        return Counter(self.client.made if self.client else ())

    @property
    def acting(self) -> bool:
        """With an election: it leads."""
        return self.service.acting

    @property
    def stopped(self) -> bool:
        return bool(self._run.done())

    @property
    def dead(self) -> bool:
        return self.client is not None and self.client.dead

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Its loop stands still meanwhile, as after SIGSTOP."""
        thaw = threading.Event()
        self._loop._loop.call_soon_threadsafe(thaw.wait, 120)
        try:
            yield
        finally:
            thaw.set()

    def settle(self) -> None:
        """Until it has written nothing for two seconds: events come after what they tell of."""
        since, written = time.monotonic(), self.writes

        def quiet() -> bool:
            nonlocal since, written
            if self.writes != written:
                since, written = time.monotonic(), self.writes
            return time.monotonic() - since >= 2

        wait_for(quiet, what="quiet")

    def stop(self) -> None:
        if self._run.done():
            return
        self._loop._loop.call_soon_threadsafe(self._stop.set)
        self._run.result(120)
        self._loop.close()


def lease_given_back(kube: Kube) -> None:
    """So that the first replica leads at once: whoever makes a Lease waits for its time."""
    meta = {"name": "finetune-operator", "namespace": kube.namespace}
    spec = {"holderIdentity": "", "leaseDurationSeconds": GIVEN_BACK}
    kube.create({"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta, "spec": spec}, LEASES)


Start = Callable[..., Operator]


@pytest.fixture
def kube(control_plane: Rig, namespace: str) -> Iterator[Kube]:
    allow(control_plane, namespace)
    kube = Kube(control_plane, namespace)
    yield kube
    kube.close()


@pytest.fixture
def start(operator_kubeconfig: Path, kube: Kube) -> Iterator[Start]:
    started: list[Operator] = []

    def start(**options: Any) -> Operator:
        started.append(Operator(operator_kubeconfig, kube.namespace, **options))
        return started[-1]

    yield start
    for operator in started:
        operator.stop()
