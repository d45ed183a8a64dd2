"""Puppet kubelet and agents of one namespace on a real API server: pods that train, in truth, and answer for progress.

The truth is kept here (`Trainer`), apart from what the API server is told of it: so a test knows whether an attempt was
healthy when somebody ended it, and whether two of a job ever trained at once.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from finetune_api import names
from finetune_api.failures import CLASSES, Reason, TerminationMessage, class_of
from finetune_api.plan import ProgressReport, RunPlan
from finetune_api.status import Artifact, Progress
from finetune_operator.kube.client import ApiError
from finetune_operator.kube.resources import JOBS, PODS, Raw
from tests.cluster.rig.state import free_ports
from tests.integration.nodes import NAMES
from tests.support.kube_client import Kube, Loop

TICK = 0.15
GRACE = 0.6
"""Seconds that a trainer takes to end when it is told to."""
ALL_PODS, ALL_JOBS = PODS._replace(selector=""), JOBS._replace(selector="")


@dataclass(eq=False)
class Trainer:
    """What really runs in a pod."""

    job: str
    attempt: int
    owner: str
    """Uid of the Job: an attempt whose Job was deleted before the operator noted it gets another one."""
    index: int
    plan: RunPlan
    since: float
    code: int | None = None
    told_at: float | None = None
    written: bool = False
    """Its end is in the pod's status."""


@dataclass
class Agents:
    """One address for all: who asks shows the token of the attempt that it means."""

    trainers: dict[str, Trainer] = field(default_factory=dict)
    """By token."""
    deaf: set[str] = field(default_factory=set)
    """Jobs whose agents do not answer."""
    lying: dict[str, str] = field(default_factory=dict)
    """Jobs whose agents tell nonsense, and which: a key of LIES."""

    asked: Counter[str] = field(default_factory=Counter)
    """How often, by job."""

    def start(self) -> int:
        """The port."""
        self._loop = Loop()
        (port,) = free_ports(1)
        self._loop.call(self._serve(port))
        return port

    def stop(self) -> None:
        self._loop.call(self._runner.cleanup())
        self._loop.close()

    async def _serve(self, port: int) -> None:
        app = web.Application()
        app.router.add_get("/progress", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        trainer = self.trainers.get(token)
        who = f"{trainer.plan.job.namespace}/{trainer.job}" if trainer else ""
        if trainer is not None:
            self.asked[trainer.job] += 1
        if trainer is None or trainer.code is not None or who in self.deaf:
            if request.transport:
                request.transport.abort()
            return web.Response()
        plan = trainer.plan
        progress = Progress(step=int(10 * (time.monotonic() - trainer.since)))
        truth = ProgressReport(
            attempt=plan.attempt, phase="training", progress=progress, uid=plan.job.uid, nonce=plan.nonce
        )
        answer = truth.to_json()
        if who in self.lying:
            answer = LIES[self.lying[who]](answer)
        return web.json_response(answer) if isinstance(answer, dict) else web.Response(body=answer)


LIES: dict[str, Any] = {
    "of another attempt": lambda truth: truth | {"attempt": truth["attempt"] + 1},
    "of another job": lambda truth: truth | {"uid": "00000000-0000-0000-0000-000000000000"},
    "of whoever had the address": lambda truth: truth | {"nonce": "stolen"},
    "an artifact elsewhere": lambda truth: (
        truth | {"artifact": {"uri": "s3://thief/a", "digest": "sha256:9", "sizeBytes": 1, "kind": "adapter"}}
    ),
    "a number that is none": lambda truth: truth | {"progress": {"step": 2**64}},
    "words that are no JSON": lambda _: b"\x1b[2J" * 100,
    "far too much": lambda truth: truth | {"evaluation": {"slices": ["x" * 100] * 5000}},
    "it has failed": lambda truth: truth | {"phase": "failed"},
}
"""What an agent may say instead of the truth."""


@dataclass
class Kubelet:
    """Runs all gangs of a namespace, in a thread of its own from `start` to `stop`."""

    kube: Kube
    agents: Agents
    dice: random.Random
    trainers: dict[str, Trainer] = field(default_factory=dict)
    """By uid of the pod."""
    lengths: dict[str, float] = field(default_factory=dict)
    """Seconds that a run of each job trains."""
    homeless: set[str] = field(default_factory=set)
    """Jobs whose pods find no node."""
    finished: set[str] = field(default_factory=set)
    """Jobs whose artifact is there: the next attempt finds it, and ends."""
    crashed: set[tuple[str, int]] = field(default_factory=set)
    """Attempts that failed in truth."""
    taken: set[tuple[str, int]] = field(default_factory=set)
    """Attempts of which somebody else took the Job or a pod away."""
    wrong: list[str] = field(default_factory=list)
    """What must not be."""
    ticks: int = 0
    """Rounds that it has made."""
    skew: float = 0.0
    """Seconds by which the clock of node 0 is ahead."""
    sidecars: bool = False
    cleans: bool = False
    """A policy deletes Jobs as soon as they have ended."""

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._lock = threading.RLock()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(30)

    def alive(self, job: str) -> set[int]:
        """Attempts that train, in truth."""
        return {each.attempt for each in list(self.trainers.values()) if each.job == job and each.code is None}

    def crash(self, job: str) -> None:
        """One of its trainers fails, and its peers lose it. Nothing, where no gang runs that is well."""
        with self._lock:
            for attempt in self.alive(job):
                gang = self._gang(job, attempt)
                healthy = all(each.code is None and each.told_at is None for each in gang)
                if len(gang) == gang[0].plan.nodes and healthy and (job, attempt) not in self.taken:
                    self.crashed.add((job, attempt))
                    for number, each in enumerate(gang):
                        each.code = 83 if number else 70

    def take(self, job: str, attempt: int) -> bool:
        """Somebody is about to take its Job or a pod away; False where it has ended of itself."""
        with self._lock:
            if any(each.code is not None for each in self._gang(job, attempt)):
                return False
            self.taken.add((job, attempt))
            return True

    def _gang(self, job: str, attempt: int) -> list[Trainer]:
        """Trainers of the attempt's newest Job."""
        found = [each for each in list(self.trainers.values()) if (each.job, each.attempt) == (job, attempt)]
        newest = max(found, key=lambda each: each.since).owner if found else ""
        return sorted((each for each in found if each.owner == newest), key=lambda each: each.index)

    def _run(self) -> None:
        while not self._over.wait(TICK):
            try:
                self._tick()
            except (ApiError, TimeoutError):
                continue
            except Exception as error:
                self.wrong.append(f"the kubelet failed: {error!r}")
                raise

    def _tick(self) -> None:
        pods = self.kube.list(ALL_PODS)
        with self._lock:
            self._notice(pods)
        for pod in pods:
            with contextlib.suppress(ApiError), self._lock:  # it may be gone by now, or have ended
                self._pod(pod)
        with self._lock:
            self._train()
        if self.cleans:
            self._clean()
        self.ticks += 1

    def _notice(self, pods: list[Raw]) -> None:
        """Trainers whose pods the cluster ended, because it counts their node as gone. This comes before any other pod
        begins: all pods of a list were there, or not, at the same moment."""
        phases = {pod["metadata"]["uid"]: pod.get("status", {}).get("phase") for pod in pods}
        for uid, trainer in self.trainers.items():
            if trainer.code is None and phases.get(uid, "Failed") == "Failed":
                trainer.code = 137
                self.taken.add((trainer.job, trainer.attempt))

    def _pod(self, pod: Raw) -> None:
        meta, phase = pod["metadata"], pod.get("status", {}).get("phase")
        owner = next((o for o in meta.get("ownerReferences", ()) if o["kind"] == "Job"), None)
        trainer = self.trainers.get(meta["uid"])
        if owner is None or phase not in ("Pending", "Running"):
            return
        if trainer is None:
            ours = names.LABEL_COMPLETION_INDEX in meta.get("annotations", {})  # else a copy that was adopted
            if phase == "Pending" and "deletionTimestamp" not in meta and ours:
                self._begin(pod, owner)
            return
        conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
        if "DisruptionTarget" in conditions or (trainer.code is None and conditions.get("Ready") == "False"):
            self.taken.add((trainer.job, trainer.attempt))  # the cluster counts its node as gone
        if "deletionTimestamp" in meta and trainer.told_at is None:
            self._told(trainer)
        if trainer.code is None and trainer.told_at is not None and time.monotonic() - trainer.told_at > GRACE:
            trainer.code = 75
        if trainer.code is not None:
            self._end(pod, trainer)

    def _begin(self, pod: Raw, owner: Raw) -> None:
        job, _, number = owner["name"].rpartition("-")
        meta, attempt = pod["metadata"], int(number)
        if job in self.homeless:
            if not pod["status"].get("conditions"):
                self.kube.find_no_node(pod)
            return
        plan = RunPlan.model_validate_json(meta["annotations"][names.ANNOTATION_PLAN])
        index = int(meta["annotations"][names.LABEL_COMPLETION_INDEX])
        if "nodeName" not in pod["spec"]:
            self.kube.bind(pod, NAMES[index])
        container = {"name": names.CONTAINER, "image": "t", "imageID": "t", "ready": True, "restartCount": 0}
        status = {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}],
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
            "containerStatuses": [{**container, "state": {"running": {}}}],
        }
        others = self.alive(job) - {attempt}
        if others:
            self.wrong.append(f"attempt {attempt} of {job} began while {others} trained")
        trainer = Trainer(job, attempt, owner["uid"], index, plan, time.monotonic())
        self.kube.set_pod(pod, status)
        self.trainers[meta["uid"]] = trainer
        if index == 0 and plan.token:
            self.agents.trainers[plan.token] = trainer

    def _told(self, trainer: Trainer) -> None:
        trainer.told_at = time.monotonic()
        attempt = (trainer.job, trainer.attempt)
        if trainer.code is None and attempt not in self.crashed | self.taken:
            self.wrong.append(f"attempt {trainer.attempt} of {trainer.job} was healthy, and was ended")

    def _train(self) -> None:
        """A gang ends together, when all of it has trained for long enough."""
        for job, attempt in {(each.job, each.attempt) for each in self.trainers.values() if each.code is None}:
            gang = self._gang(job, attempt)
            length = 0.5 if job in self.finished else self.lengths[job]
            whole = len(gang) == gang[0].plan.nodes and all(e.code is None and e.told_at is None for e in gang)
            if whole and time.monotonic() - max(each.since for each in gang) > length:
                self.finished.add(job)
                for each in gang:
                    each.code = 0

    def _end(self, pod: Raw, trainer: Trainer) -> None:
        told = "deletionTimestamp" in pod["metadata"]
        if not trainer.written or (told and pod["status"]["phase"] == "Running"):
            lingers = self.sidecars and trainer.code == 0 and not told
            self._write_end(pod, trainer, phase="Running" if lingers else "Failed" if trainer.code else "Succeeded")
            trainer.written = True
        if told:
            self.kube.delete(pod["metadata"]["name"], PODS, grace=0)

    def _write_end(self, pod: Raw, trainer: Trainer, *, phase: str) -> None:
        moment = datetime.now(UTC) + timedelta(seconds=0.0 if trainer.index else self.skew)
        at = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        words = termination_message(trainer.code or 0, at=at, output=trainer.plan.spec.output.uri)
        ended = {"exitCode": trainer.code, "reason": "Error" if trainer.code else "Completed", "finishedAt": at}
        state = {"terminated": {**ended, "startedAt": at, "message": words.encode()}}
        container = {"name": names.CONTAINER, "image": "t", "imageID": "t", "ready": False, "restartCount": 0}
        self.kube.set_pod(pod, {"phase": phase, "containerStatuses": [{**container, "state": state}]})

    def _clean(self) -> None:
        """As a policy of the cluster does, or a job's own TTL."""
        for job in self.kube.list(ALL_JOBS):
            ended = {c["type"] for c in job.get("status", {}).get("conditions", ()) if c["status"] == "True"}
            if ended & {"Complete", "Failed"} and "deletionTimestamp" not in job["metadata"]:
                name, _, attempt = job["metadata"]["name"].rpartition("-")
                self.taken.add((name, int(attempt)))
                with contextlib.suppress(ApiError):
                    self.kube.delete(job["metadata"]["name"], JOBS)


REASONS = {70: Reason.UnexpectedError, 75: Reason.Interrupted, 83: Reason.PeerLost}


def termination_message(code: int, *, at: str, output: str) -> TerminationMessage:
    if not code:
        artifact = Artifact(uri=output, digest="sha256:1", size_bytes=1, kind="adapter")
        return TerminationMessage(time=at, artifact=artifact)
    reason = REASONS[code]
    failure_class = class_of(reason)
    exit_code = CLASSES[failure_class].exit_code
    return TerminationMessage(
        failure_class=failure_class, reason=reason, message="it ended", exit_code=exit_code, time=at
    )
