"""Chaos by a seed, in virtual time: watches that lag, lists, frozen replicas, cut networks, lying clocks and labels.

Two replicas of the real operator, less HTTP and kopf, look after a few jobs on an API server in memory. Whatever is
done to what they see, these hold: no healthy attempt is ended, at most one attempt of a job trains, every job comes to
its end, and neither memory nor writes grow without bound.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api import names
from finetune_api.plan import ProgressReport
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.inquiries import progress_poller
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS
from tests.support.simulated_api import Api
from tests.support.simulated_cluster import NO_NODE, STEP, Cluster
from tests.support.simulated_replica import Replica

HOURS = 3600.0
TROUBLE = 1.5 * HOURS
MINUTE = 60.0 + 2 * STEP
WRITES = 1000
"""Of all replicas for four jobs, in hours full of trouble."""


@dataclass
class Chaos:
    seed: int
    jobs: tuple[str, ...] = ("j0", "j1", "j2", "j3")
    waiting: str = "j3"
    """The job whose pods find no node while there is trouble."""
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.api = Api()
        self.cluster = Cluster(self.api, length=self.dice.choice([900.0, 2700.0]))
        self.cluster.sidecars, self.cluster.ttl = self.dice.random() < 0.2, self.dice.random() < 0.2
        self.cluster.skew = {n: self.dice.choice([0.0, 0.0, 3600.0, -3600.0]) for n in range(2)}
        self.cluster.homeless = {self.waiting}
        self.replicas = [Replica(self.api, self.cluster) for _ in range(2)]
        self.attempts: dict[str, int] = {}
        self.lost: set[tuple[str, int]] = set()
        """Attempts whose Job somebody deleted."""
        self.until: list[tuple[float, Any]] = []
        self.since: dict[str, tuple[float, set[int], bool]] = {}
        """Of each job: since when the same attempt trains, or none, while a leader is well or is not."""
        self.dumb: dict[str, float] = {}
        """Of a job that waits and does not say for what: since when."""

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fetch(*given: Any) -> ProgressReport | None:
            return await self.asking.fetch(*given)

        monkeypatch.setattr(progress_poller, "fetch", fetch)
        self.replicas[0].lead(True)
        for name in self.jobs:
            self.cluster.submit(name)
        while self.api.now < 4 * HOURS:
            self.api.now += STEP
            if self.api.now < TROUBLE and self.dice.random() < 0.04:
                self.disturb()
            self.heal(everything=self.api.now >= TROUBLE)
            if self.api.now >= TROUBLE + 2 * MINUTE:
                self.cluster.homeless.clear()
            self.cluster.step()
            for replica in self.replicas:
                self.asking = replica
                replica.step()
            self.hold()
            if self.api.now > TROUBLE + 600 and all(self.status(name).phase is Phase.Succeeded for name in self.jobs):
                break

    def status(self, name: str) -> FineTuneJobStatus:
        raw = self.api.get(FINETUNEJOBS, name)
        assert raw is not None
        return FineTuneJobStatus.model_validate(raw.get("status") or {}, strict=False)

    def hold(self) -> None:
        """What must be true at any time."""
        for name in self.jobs:
            alive = self.cluster.alive(name)
            assert len(alive) <= 1, f"{self.told}: attempts {alive} of {name} train at once"
            raw = self.api.get(FINETUNEJOBS, name)
            assert raw is not None
            status = raw.get("status") or {}
            number, before = status.get("attempt", 0), self.attempts.get(name, 0)
            if number != before:
                rightly = before == 0 or {(name, before)} & (self.cluster.crashed | self.lost)
                rightly = rightly or name in self.cluster.cleaned
                assert rightly, f"{self.told}: attempt {before} of {name} was ended: {status.get('lastFailure')}"
                self.attempts[name] = number
            assert status.get("phase") != "Failed", f"{self.told}: {name} failed: {status.get('lastFailure')}"
            self.says_how_it_is(name, status)

    def says_how_it_is(self, name: str, status: dict[str, Any]) -> None:
        """A minute after a job came to a halt its status says so, and why; one that trains is said to run."""
        trains, well = self.cluster.alive(name), any(replica.well for replica in self.replicas)
        since, *before = self.since.get(name, (self.api.now, trains, well))
        if before != [trains, well]:
            since = self.api.now
        self.since[name] = since, trains, well
        running = next((c for c in status.get("conditions", ()) if c["type"] == "Running"), {})
        if well and self.api.now - since > MINUTE:
            assert running.get("status") == str(status.get("attempt") in trains), (
                f"{self.told}: {name} for a minute: {trains}, {status}"
            )
            assert running["message"], f"{self.told}: {name} does not say why: {status}"
        self.says_why(name, running, well=well)

    def says_why(self, name: str, running: dict[str, Any], *, well: bool) -> None:
        """The job that waits names its reason, and whatever else it says it does not say for a minute."""
        told = running.get("reason") == "Unschedulable" and NO_NODE in running["message"]
        if told or not well or name not in self.cluster.homeless:
            self.dumb.pop(name, None)
            return
        since = self.dumb.setdefault(name, self.api.now)
        assert self.api.now - since <= MINUTE, f"{self.told}: {name} does not say why it waits: {running}"

    # what is done

    def disturb(self) -> None:
        kinds = (self.lag, self.lag, self.breaks, self.cut, self.deafness, self.one_way, self.leaders, self.freeze,
                 self.strip, self.strip, self.copy, self.crash, self.delete, self.lie)  # fmt: skip
        kind = self.dice.choice(kinds)
        self.told.append(f"{self.api.now:.0f} {kind.__name__}")
        kind()

    def later(self, undo: Any, most: float = 1500.0) -> None:
        self.until.append((self.api.now + self.dice.uniform(10, most), undo))

    def heal(self, *, everything: bool) -> None:
        due = [each for each in self.until if everything or each[0] <= self.api.now]
        self.until = [each for each in self.until if each not in due]
        for _, undo in due:
            undo()

    def lag(self) -> None:
        watch = self.dice.choice(self.dice.choice(self.replicas).watches)
        watch.delay = self.dice.choice([10.0, 60.0, 300.0])
        self.later(lambda: setattr(watch, "delay", 0.0))

    def breaks(self) -> None:
        for watch in self.dice.choice(self.replicas).watches:
            watch.broken = True

    def cut(self) -> None:
        client = self.dice.choice(self.replicas).client
        client.cut = True
        self.later(lambda: setattr(client, "cut", False))

    def deafness(self) -> None:
        replica = self.dice.choice(self.replicas)
        replica.hears = False
        self.later(lambda: setattr(replica, "hears", True))

    def one_way(self) -> None:
        name = self.dice.choice(self.jobs)
        self.cluster.deaf.add(name)
        self.later(lambda: self.cluster.deaf.discard(name))

    def lie(self) -> None:
        """What answers for a job is no agent of its attempt."""
        name = self.dice.choice(self.jobs)
        self.cluster.lying[name] = self.dice.choice(["it is of another job's agent", "not valid JSON", "out of range"])
        self.later(lambda: self.cluster.lying.pop(name, None))

    def leaders(self) -> None:
        first, second = self.replicas if self.replicas[0].leads else self.replicas[::-1]
        first.lead(False)
        second.lead(True)

    def freeze(self) -> None:
        replica = self.dice.choice(self.replicas)
        replica.frozen = True
        self.later(lambda: setattr(replica, "frozen", False))

    def strip(self) -> None:
        """Our label is taken off a Job or a pod, and maybe put back."""
        resource = self.dice.choice([JOBS, PODS])
        found = [raw for raw in self.api.all(resource) if names.LABEL_JOB in raw["metadata"].get("labels", {})]
        if not found:
            return
        raw = self.dice.choice(found)
        name, labels = raw["metadata"]["name"], raw["metadata"]["labels"]
        bare = {key: value for key, value in labels.items() if key != names.LABEL_JOB}
        self.api.change(resource, name, metadata={"labels": bare})
        if self.dice.random() < 0.5:
            self.later(lambda: self.api.change(resource, name, metadata={"labels": labels}))

    def copy(self) -> None:
        """A copy of a pod for debugging, which fails."""
        if pods := self.api.all(PODS):
            raw = copy.deepcopy(self.dice.choice(pods))
            meta = {key: raw["metadata"][key] for key in ("namespace", "labels", "creationTimestamp")}
            raw["metadata"] = {**meta, "name": f"copy-{self.api.made}", "ownerReferences": []}
            containers = [{"name": names.CONTAINER, "state": {"terminated": {"exitCode": 1}}}]
            raw["status"] = {"phase": "Failed", "containerStatuses": containers}
            self.api.put(PODS, raw)

    def crash(self) -> None:
        self.cluster.crash(self.dice.choice(self.jobs))

    def delete(self) -> None:
        """Somebody deletes a Job."""
        if jobs := self.api.all(JOBS):
            name = self.dice.choice(jobs)["metadata"]["name"]
            job, _, attempt = name.rpartition("-")
            self.lost.add((job, int(attempt)))
            self.api.change(JOBS, name, metadata={"deletionTimestamp": "2026-01-02T03:04:05Z"})


@pytest.fixture(scope="module", autouse=True)
def loop() -> Any:
    """Nothing runs in it: the operator's parts want one to be there."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.mark.parametrize("fives", range(40))
def test_no_healthy_attempt_is_ended(
    fives: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """200 seeds, five at a time."""
    with caplog.at_level(logging.INFO, logger="finetune_operator"):
        for seed in range(fives * 5, fives * 5 + 5):
            caplog.clear()
            chaos = Chaos(seed)
            chaos.run(monkeypatch)
            ends = {name: chaos.status(name) for name in chaos.jobs}
            assert {name: end.phase for name, end in ends.items()} == dict.fromkeys(chaos.jobs, Phase.Succeeded), (
                f"seed {seed}: {chaos.told}: {ends}"
            )
            writes = [write for replica in chaos.replicas for write in replica.client.writes]
            assert len(writes) < WRITES, f"seed {seed}: {len(writes)} writes"
            assert len(caplog.records) < WRITES, f"seed {seed}: {len(caplog.records)} lines in the log"
            for replica in chaos.replicas:
                cache = replica.cache
                kept = len(cache.notes)
                assert kept <= len(chaos.jobs), f"seed {seed}: it remembers {kept} things of jobs that have ended"
