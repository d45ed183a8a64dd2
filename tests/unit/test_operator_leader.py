# ruff: noqa: ARG002  (the stand-in has the methods of a Client)
"""Who acts: the Lease's rules with a clock of the test's own, and writes that end with the lease."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from finetune_operator.kube.client import (
    AlreadyExists,
    ApiError,
    Calm,
    Client,
    Conflict,
    Listing,
    NotFound,
    Unavailable,
)
from finetune_operator.kube.leader import GIVEN_BACK, Election, Fenced, Leader, NotLeading
from finetune_operator.kube.resources import JOBS, LEASES, Key, Raw, Resource

QUICK = {"lease": 15, "renew": 10.0, "retry": 0.0}


class Server:
    """One Lease, with versions, as the API server keeps it. At first a leader has given it back."""

    def __init__(self) -> None:
        self.lease: Raw | None = {
            "metadata": {"name": "finetune-operator", "namespace": "system", "resourceVersion": "1"},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": GIVEN_BACK},
        }
        self.version = 100
        self.away = False
        self.writes = 0

    def _there(self) -> None:
        if self.away:
            raise Unavailable("away")

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "") -> Listing:
        return Listing([], "1")

    async def get(self, resource: Resource, key: Key) -> Raw:
        self._there()
        if self.lease is None:
            raise NotFound("no Lease")
        return copy.deepcopy(self.lease)

    async def create(self, resource: Resource, body: Raw) -> Raw:
        self._there()
        if resource is not LEASES:
            self.writes += 1
            return body
        if self.lease is not None:
            raise AlreadyExists("it is there")
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)

    async def replace(self, resource: Resource, body: Raw) -> Raw:
        self._there()
        if self.lease is None:
            raise NotFound("no Lease")
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("changed")
        self.edit(body)
        return copy.deepcopy(self.lease)

    def edit(self, body: Raw | None) -> None:
        """By a replica, or by anybody; None: it is deleted."""
        self.version += 1
        self.lease = copy.deepcopy(body)
        if self.lease is not None:
            self.lease["metadata"]["resourceVersion"] = str(self.version)

    @property
    def holder(self) -> str:
        return self.lease["spec"]["holderIdentity"] if self.lease else ""


class Play:
    """Replicas on one server, and a clock that moves when told."""

    def __init__(self) -> None:
        self.server, self.now = Server(), 100.0
        self.acting: set[str] = set()
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.leaders: dict[str, Leader] = {}

    def enter(self, who: str, server: Client | None = None) -> Leader:
        election = Election(namespace="system", identity=who, **QUICK)  # type: ignore[arg-type]
        leader = self.leaders[who] = Leader(server or self.server, election, clock=lambda: self.now)

        async def work() -> None:
            self.acting.add(who)
            try:
                await asyncio.sleep(3600)
            finally:
                self.acting.discard(who)

        self.tasks[who] = asyncio.create_task(leader.run(work))
        return leader

    async def leave(self, who: str) -> None:
        self.tasks[who].cancel()
        await asyncio.gather(self.tasks.pop(who), return_exceptions=True)

    async def later(self, seconds: float = 0.0) -> None:
        self.now += seconds
        for _ in range(200):  # turns of the loop: in a few of them each replica looks at the Lease again
            await asyncio.sleep(0)


def play(scene: Callable[[Play], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Play()
        try:
            await scene(stage)
        finally:
            for who in list(stage.tasks):
                await stage.leave(who)

    asyncio.run(run())


def test_the_first_leads_and_the_second_stands_by() -> None:
    async def scene(stage: Play) -> None:
        stage.enter("a")
        await stage.later()
        stage.enter("b")
        for _ in range(5):
            await stage.later(4)
        assert (stage.acting, stage.server.holder) == ({"a"}, "a")

    play(scene)


def test_a_leader_that_ends_gives_the_lease_back() -> None:
    async def scene(stage: Play) -> None:
        stage.enter("a")
        await stage.later()
        stage.enter("b")
        await stage.later()
        await stage.leave("a")
        await stage.later()
        assert stage.acting == {"b"}

    play(scene)


def test_a_silent_leader_steps_down_before_another_may_lead() -> None:
    async def scene(stage: Play) -> None:
        lonely = Server()
        stage.enter("a", lonely)
        await stage.later()
        stage.server.lease = copy.deepcopy(lonely.lease)  # b sees what a wrote last, and then a's network is cut
        lonely.away = True
        stage.enter("b")
        await stage.later()
        await stage.later(9)
        assert stage.acting == {"a"}
        await stage.later(2)  # 11 s: a's time is over, the lease is not
        assert stage.acting == set()
        await stage.later(3)
        assert stage.acting == set()
        await stage.later(2)  # 16 s
        assert stage.acting == {"b"}

    play(scene)


def test_an_answer_that_was_lost_costs_no_leadership() -> None:
    async def scene(stage: Play) -> None:
        stage.enter("a")
        await stage.later()
        assert stage.server.lease is not None
        stage.server.lease["metadata"]["resourceVersion"] = "77"  # as after a renewal of ours that we do not know of
        await stage.later(1)
        assert stage.acting == {"a"}
        await stage.later(9.5)
        assert stage.acting == {"a"}

    play(scene)


def test_who_makes_the_lease_waits_for_whoever_may_lead_by_one_that_is_gone() -> None:
    async def scene(stage: Play) -> None:
        stage.server.edit(None)
        stage.enter("a")
        await stage.later()
        assert (stage.acting, stage.server.holder) == (set(), "a")
        for _ in range(7):
            await stage.later(2)
        assert stage.acting == set()
        await stage.later(2)
        assert stage.acting == {"a"}

    play(scene)


EDITS = [
    ("deleted", None, set()),
    ("without its holder", {"holderIdentity": "", "leaseDurationSeconds": 15}, set()),
    ("given to another", {"holderIdentity": "b", "leaseDurationSeconds": 15}, set()),
]


@pytest.mark.parametrize(("spec", "acting"), [row[1:] for row in EDITS], ids=[row[0] for row in EDITS])
def test_a_leader_stops_at_once_when_somebody_changes_its_lease(spec: Raw | None, acting: set[str]) -> None:
    async def scene(stage: Play) -> None:
        stage.enter("a")
        await stage.later()
        stage.enter("b")
        await stage.later()
        assert stage.acting == {"a"}
        assert stage.server.lease is not None
        stage.server.edit(None if spec is None else stage.server.lease | {"spec": spec})
        await stage.later(0.1)
        assert stage.acting == acting
        for _ in range(16):
            await stage.later(1)
            assert len(stage.acting) <= 1
        await stage.later(1)
        assert len(stage.acting) == 1

    play(scene)


@pytest.mark.parametrize("seed", range(40))
def test_two_never_lead_whatever_is_done_to_the_lease(seed: int) -> None:
    """Three replicas, each with a network that may be cut, and people who delete and edit the Lease."""
    dice, server, now = random.Random(seed), Server(), [100.0]
    wires = [Wire(server) for _ in range(3)]
    leaders = [
        Leader(wire, Election(namespace="system", identity=f"r{n}", lease=15, renew=10.0, retry=2.0),
               clock=lambda: now[0])
        for n, wire in enumerate(wires)
    ]  # fmt: skip

    def disturb() -> None:
        match dice.randrange(8):
            case 0 | 1:
                dice.choice(wires).away ^= True
            case 2:
                server.edit(None)
            case 3 if server.lease:
                server.edit(server.lease | {"spec": {**server.lease["spec"], "holderIdentity": ""}})
            case 4 if server.lease:
                server.edit(
                    server.lease | {"spec": {**server.lease["spec"], "holderIdentity": f"r{dice.randrange(3)}"}}
                )
            case 5:
                now[0] += dice.choice([1.0, 5.0, 12.0, 30.0])  # the processes are frozen together
            case 6:
                dice.choice(wires).loses = True

    async def story() -> int:
        led = 0
        for _ in range(600):
            now[0] += dice.uniform(0.1, 1.0)
            if dice.random() < 0.1:
                disturb()
            await dice.choice(leaders)._try()
            acting = [n for n, leader in enumerate(leaders) if leader.remaining()]
            assert len(acting) <= 1, f"two lead: {acting}"
            led += len(acting)
        return led

    assert asyncio.run(story()) > 50, "somebody leads now and then"


class Wire:
    """One replica's way to the server."""

    def __init__(self, server: Server) -> None:
        self.server, self.away, self.loses = server, False, False

    async def get(self, resource: Resource, key: Key) -> Raw:
        return await self._through(self.server.get(resource, key))

    async def create(self, resource: Resource, body: Raw) -> Raw:
        return await self._through(self.server.create(resource, body))

    async def replace(self, resource: Resource, body: Raw) -> Raw:
        return await self._through(self.server.replace(resource, body))

    async def _through(self, request: Any) -> Raw:
        if self.away:
            request.close()
            raise Unavailable("cut off")
        answer: Raw = await request
        if self.loses:
            self.loses = False
            raise Unavailable("the answer was lost")
        return answer


def test_the_time_of_a_sleeping_machine_counts() -> None:
    """A leader that slept through its lease finds its writes refused, whatever it was about to do."""

    async def scene(stage: Play) -> None:
        leader = stage.enter("a")
        await stage.later()
        fenced = Fenced(stage.server, leader)
        await fenced.create(JOBS, {})
        stage.now += 60
        with pytest.raises(NotLeading):
            await fenced.create(JOBS, {})
        assert stage.server.writes == 1

    play(scene)


def test_a_write_under_way_ends_with_the_lease() -> None:
    class Slow(Server):
        async def create(self, resource: Resource, body: Raw) -> Raw:
            if resource is LEASES:
                return await super().create(resource, body)
            await asyncio.sleep(3600)
            return body

    async def scene(stage: Play) -> None:
        server = Slow()
        leader = stage.enter("a", server)
        await stage.later()
        server.away = True
        stage.now += 9.9
        with pytest.raises(NotLeading):
            await Fenced(server, leader).create(JOBS, {})

    play(scene)


def test_in_an_outage_two_requests_at_a_time_are_tried() -> None:
    async def run() -> None:
        calm, under_way, most = Calm(), 0, 0
        calm.LONGEST_PAUSE = 0.001  # type: ignore[misc]

        async def request(answer: ApiError | None) -> None:
            nonlocal under_way, most
            async with calm.turn():
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0)
                under_way -= 1
                if answer:
                    raise answer

        async def burst(answer: ApiError | None) -> int:
            nonlocal most
            most = 0
            requests: list[Any] = [request(answer) for _ in range(50)]
            await asyncio.gather(*requests, return_exceptions=True)
            return most

        assert await burst(None) == 50
        await burst(Unavailable("away"))
        assert await burst(Unavailable("away")) == 2
        with pytest.raises(NotFound):
            await request(NotFound("an answer"))
        assert await burst(None) == 50

    asyncio.run(run())
