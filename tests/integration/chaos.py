"""One seed of chaos on the real API server: two replicas, a network for each, puppet kubelets, and trouble."""

from __future__ import annotations

import contextlib
import copy
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from finetune_api import names
from finetune_api.status import FineTuneJobStatus, Phase, Restarts
from finetune_operator.kube.client import ApiError
from finetune_operator.kube.leader import Election
from finetune_operator.kube.resources import JOBS, PODS
from tests.cluster.rig import Rig
from tests.integration.exchange import Exchange, watches
from tests.integration.fault_proxy import FaultProxy
from tests.integration.faults import behind, gone
from tests.integration.puppets import ALL_PODS, LIES, Agents, Kubelet
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Operator

TROUBLES = 20
"""Of each seed, in an order that only the seed decides."""
SLOW = 400.0
"""Seconds that a slow machine may take for what a quick one does in two; within a minute in virtual time."""
JOBS_OF_A_SEED = ("j0", "j1", "j2")
WRITES = 150
"""Of both replicas for three jobs, and one more for each second: progress is written as long as a job trains."""


@dataclass
class Wires:
    """How the watches of one replica are, by what they watch."""

    network: FaultProxy
    late: dict[str, float] = field(default_factory=dict)
    """Seconds."""
    expired: set[str] = field(default_factory=set)
    """What their next watch asks for is no longer there."""

    async def __call__(self, exchange: Exchange) -> Any:
        watched = exchange.call.resource
        if watched in self.expired:
            self.expired.discard(watched)
            return await gone()(exchange)
        return await behind(lambda: self.late.get(watched, 0.0))(exchange)


class Replica:
    """`name`: in the election; empty: there is none."""

    def __init__(self, rig: Rig, kube: Kube, name: str, networks: contextlib.ExitStack) -> None:
        self.network = networks.enter_context(FaultProxy.before(rig))
        self.wires = Wires(self.network)
        self.network.inject(self.wires, when=watches)
        access = rig.service_account_kubeconfig("finetune-system", "finetune-operator", server=self.network.address)
        election = Election(namespace=kube.namespace, identity=name, lease=6, renew=4.5, retry=1.0)
        self.operator = Operator(access, kube.namespace, election=election if name else None)
        self._frozen = contextlib.ExitStack()

    def freeze(self) -> None:
        self._frozen.enter_context(self.operator.frozen())

    def thaw(self) -> None:
        self._frozen.close()

    def heal(self) -> None:
        self.thaw()
        self.wires.late.clear()
        self.network.mend()

    def close(self) -> None:
        self.heal()
        self.operator.stop()


class Chaos:
    """One seed."""

    def __init__(self, kube: Kube, agents: Agents, replicas: list[Replica], seed: int) -> None:
        self.kube, self.agents, self.replicas = kube, agents, replicas
        self.dice = dice = random.Random(seed)
        self.told: list[str] = []
        self._undo: list[tuple[int, Callable[[], None]]] = []
        """After how many troubles."""
        self.kubelet = Kubelet(kube, agents, random.Random(seed))
        self.kubelet.lengths = {job: dice.choice([4.0, 8.0, 3600.0]) for job in JOBS_OF_A_SEED}
        self.kubelet.skew = dice.choice([0.0, 3600.0, -3600.0])
        self.kubelet.sidecars, self.kubelet.cleans = seed % 3 == 1, seed % 3 == 2
        self.kubelet.homeless = {JOBS_OF_A_SEED[-1]}

    @property
    def seconds(self) -> float:
        """That it has taken so far."""
        return time.monotonic() - self._began

    def run(self) -> None:
        self._began = time.monotonic()
        self.kubelet.start()
        try:
            for number, job in enumerate(JOBS_OF_A_SEED):
                self.kube.create(manifest(job, nodes=1 + number % 2, deadlines={"stall": "1s"}))
            for _ in range(TROUBLES):
                self._let_work(rounds=self.dice.randint(1, 4))
                with contextlib.suppress(ApiError):  # what it meant is gone
                    self._disturb()
                self._heal(everything=False)
            self._heal(everything=True)
            self._says_why()
            self.kubelet.lengths = dict.fromkeys(JOBS_OF_A_SEED, 1.0)
            for job in JOBS_OF_A_SEED:
                wait_for(lambda job=job: self._ended(job), what=f"the end of {job}", seconds=SLOW, state=self._state)
        finally:
            self._heal(everything=True)
            self.kubelet.stop()

    def _let_work(self, *, rounds: int) -> None:
        """So many of the kubelet's, which takes its time with the API server as the operators do."""
        until = self.kubelet.ticks + rounds
        wait_for(lambda: self.kubelet.ticks >= until or self.kubelet.wrong, what="the kubelet works", seconds=SLOW)

    def _ended(self, job: str) -> bool:
        return bool(self.kubelet.wrong) or self.kube.phase(job) in ("Succeeded", "Failed")

    def _says_why(self) -> None:
        """The job whose pods find no node; then they do."""
        (job,) = self.kubelet.homeless

        def said() -> bool:
            why = self.kube.condition(job, "Running")
            return why.get("reason") == "Unschedulable" and "Insufficient nvidia.com/gpu" in why["message"]

        wait_for(said, what=f"{job} says why it cannot go on", seconds=SLOW, state=self._state)
        self.kubelet.homeless = set()

    def _state(self) -> str:
        """For whoever reads why a test failed."""
        pods = {p["metadata"]["name"]: p["status"].get("phase") for p in self.kube.list(ALL_PODS)}
        acting = [each.operator.acting for each in self.replicas]
        told = {each: self.kube.status(each) for each in JOBS_OF_A_SEED}
        return f"{self.told}; {self.kubelet.wrong}; acting: {acting}; {pods}; {told}"

    # what must be true

    def check(self) -> None:
        kubelet = self.kubelet
        assert kubelet.wrong == [], self._state()
        for job in JOBS_OF_A_SEED:
            status = FineTuneJobStatus.model_validate(self.kube.status(job), strict=False)
            assert status.phase is Phase.Succeeded, (job, status, self.told)
            crashed = {number for name, number in kubelet.crashed if name == job}
            taken = {number for name, number in kubelet.taken if name == job}
            restarts = status.restarts or Restarts()
            assert len(crashed - taken) <= restarts.counted <= len(crashed), (job, status, self.told)
            assert restarts.counted + restarts.free + 1 == status.attempt, (job, status, self.told)
            assert set(range(1, status.attempt)) <= crashed | taken, (job, status, self.told)
            assert status.artifact is None or status.artifact.uri == "s3://corp/out", (job, status)
        writes = sum((each.operator.writes for each in self.replicas), Counter())
        assert writes.total() <= WRITES + self.seconds, (writes, self.told)
        assert not any(each.operator.stopped for each in self.replicas), self.told

    # what is done

    def _disturb(self) -> None:
        kinds = (self.lag, self.lag, self.relist, self.breaks, self.cut, self.deafness, self.lies, self.freeze,
                 self.strip, self.strip, self.copy, self.crash, self.delete_job, self.delete_pod)  # fmt: skip
        kind = self.dice.choice(kinds)
        self.told.append(kind.__name__)
        kind()

    def _later(self, undo: Callable[[], Any], *, most: int = 10) -> None:
        self._undo.append((len(self.told) + self.dice.randint(1, most), undo))

    def _heal(self, *, everything: bool) -> None:
        due = [each for each in self._undo if everything or each[0] <= len(self.told)]
        self._undo = [each for each in self._undo if each not in due]
        for _, undo in due:
            with contextlib.suppress(ApiError):
                undo()
        if everything:
            for replica in self.replicas:
                replica.heal()

    def lag(self) -> None:
        late, watched = self._replica().wires.late, self.dice.choice(["finetunejobs", "jobs", "pods"])
        late[watched] = self.dice.choice([1.0, 3.0, 6.0])
        self._later(lambda: late.pop(watched, None))

    def relist(self) -> None:
        """The history that its watches would go on from is gone."""
        replica = self._replica()
        replica.wires.expired.update(("finetunejobs", "jobs", "pods"))
        replica.network.drop()

    def breaks(self) -> None:
        self._replica().network.drop()

    def cut(self) -> None:
        network = self._replica().network
        network.cut()
        self._later(network.mend, most=16)

    def freeze(self) -> None:
        replica = self._replica()
        replica.freeze()
        self._later(replica.thaw, most=16)

    def deafness(self) -> None:
        who = self._agent()
        self.agents.deaf.add(who)
        self._later(lambda: self.agents.deaf.discard(who))

    def lies(self) -> None:
        who = self._agent()
        self.agents.lying[who] = self.dice.choice(list(LIES))
        self._later(lambda: self.agents.lying.pop(who, None))

    def strip(self) -> None:
        """Our label is taken off a Job or a pod, and maybe put back."""
        resource = self.dice.choice([JOBS, PODS])
        if found := self.kube.list(resource):
            meta = self.dice.choice(found)["metadata"]
            name, job = meta["name"], meta["labels"][names.LABEL_JOB]
            self._label(resource, name, None)
            if self.dice.random() < 0.5:
                self._later(lambda: self._label(resource, name, job))

    def _label(self, resource: Any, name: str, value: str | None) -> None:
        self.kube.patch(name, {"metadata": {"labels": {names.LABEL_JOB: value}}}, resource)

    def copy(self) -> None:
        """A copy of a pod for debugging, without an owner, which fails."""
        if pods := self.kube.list(PODS):
            debug(self.kube, self.dice.choice(pods), f"debug-{len(self.told)}")

    def crash(self) -> None:
        self.kubelet.crash(self.dice.choice(JOBS_OF_A_SEED))

    def delete_job(self) -> None:
        if (job := self._running()) and self.kubelet.take(*job):
            self.kube.delete(f"{job[0]}-{job[1]}", JOBS)

    def delete_pod(self) -> None:
        """As an eviction does."""
        if (job := self._running()) and (gang := self.kube.gang(*job)) and self.kubelet.take(*job):
            self.kube.delete(self.dice.choice(gang)["metadata"]["name"], PODS)

    def _running(self) -> tuple[str, int] | None:
        job = self.dice.choice(JOBS_OF_A_SEED)
        status = self.kube.status(job)
        return (job, status["attempt"]) if status.get("phase") == "Running" else None

    def _replica(self) -> Replica:
        return self.dice.choice(self.replicas)

    def _agent(self) -> str:
        return f"{self.kube.namespace}/{self.dice.choice(JOBS_OF_A_SEED)}"


def debug(kube: Kube, pod: dict[str, Any], name: str) -> None:
    """What `kubectl debug --copy-to` makes of a pod, with its labels, and its end with 1."""
    spec = {key: value for key, value in pod["spec"].items() if key != "nodeName"}
    meta = {"name": name, "labels": pod["metadata"]["labels"]}
    made = kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": copy.deepcopy(spec)}, ALL_PODS)
    kube.end(made, code=1)
