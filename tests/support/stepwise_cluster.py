"""A little cluster in which an operator's decisions are carried out, one step at a time and in any order. It is meaner
than a real one: see test_operator_histories."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.decide import decide
from finetune_operator.kube.resources import JOBS
from finetune_operator.state.observe import Observed
from finetune_operator.state.views import ChildJob, JobView, Pod
from tests.support.operator_objects import NOW, SPEC, child, ended, job, pod, seen, spec, words

NODES = 2
RANGE = {"min": 1, "max": 3}
LIMIT = 1
REASONS = (Reason.UnexpectedError, Reason.PeerLost, Reason.Interrupted, Reason.Evicted, Reason.DataEmpty)
REASONS += (Reason.OutOfMemory, Reason.LossNonFinite)


@dataclass
class World:
    view: JobView = field(default_factory=job)
    children: dict[int, ChildJob] = field(default_factory=dict)
    pods: dict[tuple[int, int], Pod] = field(default_factory=dict)
    now: datetime = NOW
    deadlines: dict[str, str] = field(default_factory=dict)
    places: int | None = None
    """Pods that have a node at once. None: nodes are no matter, and the job is not elastic."""
    probes: dict[str, ChildJob] = field(default_factory=dict)
    probe_pods: dict[tuple[str, int], Pod] = field(default_factory=dict)
    written: list[FineTuneJobStatus] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    """More of the spec."""
    held: int = 0
    """Seconds that pods have held a node, summed."""

    def observe(self) -> Observed:
        nodes = NODES if self.places is None else RANGE
        fields = {"deadlines": self.deadlines, "nodes": nodes} | self.fields
        known = spec(retry={"max_restarts": LIMIT}, suspend=self.view.suspended, **fields)
        return seen(
            self.view,
            children=tuple(self.children.values()),
            pods=tuple(self.pods.values()),
            probes=tuple(self.probes.values()),
            probe_pods=tuple(self.probe_pods.values()),
            spec=known,
        )

    def look(self, survives: int = 100) -> int:
        """The operator looks once and dies after so many writes. How many it made."""
        decision = decide(self.observe(), self.now)
        writes = 0
        if decision.status != self.view.status:
            if writes == survives:
                return writes
            writes += 1
            self.view = replace(self.view, status=decision.status)
            self.written.append(decision.status)
        for each in decision.delete:
            if writes == survives:
                return writes
            writes += 1
            if each.probe:
                self.probes[each.name] = replace(each, deleting=True)
            else:
                self.deletes(each.attempt)
        if decision.create:
            assert not self.at_work(), "another gang is seen to run"
        for create in decision.create:
            if writes == survives:
                return writes
            writes += 1
            if create.resource is JOBS:
                number = int(create.body["metadata"]["labels"]["finetune.dev/attempt"])
                assert number == self.view.status.attempt, "a Job whose number is not in the status"
                nodes = create.body["spec"]["completions"]
                assert RANGE["min"] <= nodes <= RANGE["max"]
                self.children.setdefault(number, child(number, nodes=nodes, created=self.now))
        if decision.probe and writes < survives:
            writes += 1
            meta, nodes = decision.probe.body["metadata"], decision.probe.body["spec"]["parallelism"]
            of = meta["labels"]["finetune.dev/probe"]
            made = child(0, name=meta["name"], nodes=nodes, created=self.now, job_uid="", probe=of)
            self.probes.setdefault(made.name, made)
        return writes

    def at_work(self) -> set[int]:
        """Attempts that may train: a pod runs whose node reports, or all pods may, for all that is known."""
        unfinished = [key for key, p in self.pods.items() if p.unfinished]
        numbers = {attempt for attempt, index in unfinished if not self.pods[attempt, index].unreachable}
        return numbers | {n for n, each in self.children.items() if sum(a == n for a, _ in unfinished) >= each.nodes}

    def deletes(self, number: int) -> None:
        """The Job goes, and its pods are told to end."""
        self.children[number] = replace(self.children[number], deleting=True)
        for key, each in self.pods.items():
            if key[0] == number and each.unfinished and each.ends is None:
                self.pods[key] = replace(each, deleting=True, ends=self.now + timedelta(seconds=120))

    # what others do; each may come at any time

    def job_controller(self) -> None:
        for number, each in self.children.items():
            own = [p for (attempt, _), p in self.pods.items() if attempt == number]
            if each.held:
                for gone in [key for key in self.pods if key[0] == number]:
                    del self.pods[gone]
            elif not each.deleting and not each.failing and len(own) < each.nodes:
                index = len(own)
                self.pods[number, index] = pod(index, attempt=number)
            if any(p.phase == "Failed" for p in own):
                self.children[number] = replace(each, failing=True, finished=all(not p.unfinished for p in own))
            if len(own) == each.nodes and all(p.phase == "Succeeded" for p in own):
                self.children[number] = replace(each, complete=True, finished=True)
        for name, each in self.probes.items():
            for index in range(0 if each.deleting else each.nodes):
                idle = pod(index, attempt=0, created=self.now, probe=each.probe)
                self.probe_pods.setdefault((name, index), idle)

    def scheduler(self, places: int) -> None:
        """There are so many places now; what has one keeps it."""
        self.places = places
        for pods in (self.pods, self.probe_pods):
            for key, each in pods.items():
                if each.phase == "Pending" and each.scheduled is None:
                    found = self._taken() < places
                    pods[key] = replace(
                        each, scheduled=self.now if found else None, unschedulable="" if found else "no node"
                    )

    def _taken(self) -> int:
        everything = (*self.pods.values(), *self.probe_pods.values())
        return sum(each.unfinished and each.scheduled is not None for each in everything)

    def node_goes(self) -> None:
        """With the last pod that has one."""
        self.scheduler(max(0, (self.places or 1) - 1))
        for key, each in reversed(self.pods.items()):
            if each.unfinished and each.scheduled:
                self.pods[key] = replace(each, phase="Failed", disruption="DeletionByPodGC", disrupted=self.now)
                return

    def garbage_collector(self) -> None:
        for number, each in list(self.children.items()):
            own = [key for key in self.pods if key[0] == number]
            ended = [key for key in own if not (self.pods[key].unreachable and self.pods[key].unfinished)]
            if each.deleting and ended:
                del self.pods[ended[0]]
            elif own:
                continue
            elif each.deleting:
                del self.children[number]
        for name, each in list(self.probes.items()):
            if each.deleting:
                del self.probes[name]
                self.probe_pods = {key: p for key, p in self.probe_pods.items() if key[0] != name}

    def kubelet(self, reason: Reason | None) -> None:
        """The first pod that can moves on, or fails."""
        for key, each in self.pods.items():
            if each.unreachable or (self.places is not None and not each.scheduled):
                continue
            if each.unfinished and (reason or each.phase == "Pending"):
                last = words(reason) if reason else None
                end = ended(last.exit_code, words=last) if last else None
                self.pods[key] = replace(each, phase="Failed" if reason else "Running", ended=end)
                return

    def succeed(self) -> None:
        for key, each in self.pods.items():
            if each.phase == "Running" and not each.unreachable:
                self.pods[key] = replace(each, phase="Succeeded")

    def suspend(self, value: bool) -> None:
        self.view = replace(self.view, raw_spec=SPEC | {"suspend": value})

    def somebody_deletes_the_job(self) -> None:
        for number in self.children:
            self.deletes(number)

    def falls_silent(self) -> None:
        """The node of the last pod that runs."""
        for key, each in reversed(self.pods.items()):
            if each.phase == "Running" and not each.unreachable:
                self.pods[key] = replace(each, unreachable=True, node="dead", disrupted=self.now)
                return

    def dead_nodes_go(self) -> None:
        """A person, or the cloud, takes them out of the cluster; their pods go with them."""
        for key, each in self.pods.items():
            if each.unreachable and each.unfinished:
                self.pods[key] = replace(each, phase="Failed", disruption="DeletionByPodGC", disrupted=self.now)

    def queue(self, holds: bool) -> None:
        """Kueue, or somebody, suspends the present Job or lets it go."""
        for number, each in self.children.items():
            if not each.finished and not each.deleting and each.suspended != holds:
                resumed = None if holds else self.now
                self.children[number] = replace(each, suspended=holds, resumed=resumed)

    # and what usually comes in a row

    def goes_up(self) -> None:
        self.look()
        for _ in range(RANGE["max"]):
            self.job_controller()
        if self.places is not None:
            self.scheduler(self.places)
        for _ in range(RANGE["max"]):
            self.kubelet(None)
        self.look()

    def breaks_down(self, reason: Reason) -> None:
        self.kubelet(reason)
        self.time(10)
        self.look()

    def is_cleared(self) -> None:
        for _ in range(RANGE["max"] + 1):
            self.garbage_collector()
        self.time(100)
        self.look()

    def loses_one_for_good(self) -> None:
        """A node falls silent, its peers notice, and nobody does anything about it for long."""
        self.goes_up()
        self.falls_silent()
        self.breaks_down(Reason.PeerLost)
        self.is_cleared()
        self.time(500)
        self.look()

    def is_cut_off(self) -> None:
        """All its nodes fall silent, and people stop it and let it go on."""
        self.goes_up()
        for _ in range(RANGE["max"]):
            self.falls_silent()
        for wish in (True, False):
            self.suspend(wish)
            self.look()
        self.time(500)
        self.look()

    def runs_short_of_nodes(self) -> None:
        """All have run, and a node goes for good."""
        self.scheduler(RANGE["max"])
        self.goes_up()
        self.node_goes()
        for _ in range(2):
            self.time(70)
            self.look()
            self.is_cleared()
            self.goes_up()

    def finds_more_nodes(self) -> None:
        self.time(4000)
        self.look()
        self.job_controller()
        self.scheduler(RANGE["max"] + 1)
        self.time(20)
        self.look()

    def time(self, seconds: int) -> None:
        self.held += seconds * self._taken()
        self.now += timedelta(seconds=seconds)
