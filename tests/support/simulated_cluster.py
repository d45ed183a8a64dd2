"""Job controller, garbage collector, kubelets and agents on an Api in virtual time: what really happens to jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from finetune_api import names
from finetune_api.failures import Reason, TerminationMessage
from finetune_api.status import Artifact
from finetune_operator.inquiries.live_read import CONTROLLER_UID
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Raw
from finetune_operator.state.status import rfc3339
from tests.support.operator_objects import NOW, SPEC, words
from tests.support.simulated_api import NAMESPACE, Api

GRACE = 30.0
STEP = 5.0
NO_NODE = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu"
DONE = TerminationMessage(artifact=Artifact(uri="s3://corp/out", digest="sha256:1", size_bytes=1, kind="adapter"))


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@dataclass
class Trainer:
    """What really runs in a pod."""

    job: str
    attempt: int
    node: int
    since: float
    code: int | None = None
    told_at: float | None = None
    sidecar_until: float | None = None


@dataclass
class Cluster:
    """`length`: seconds that a run trains in all. A crash is the only thing that ends a gang rightly."""

    api: Api
    length: float
    trainers: dict[str, Trainer] = field(default_factory=dict)
    """By uid of the pod."""
    crashed: set[tuple[str, int]] = field(default_factory=set)
    """Attempts that failed in truth."""
    finished: set[str] = field(default_factory=set)
    """Jobs whose artifact is there."""
    cleaned: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    """Jobs whose agents cannot be reached."""
    homeless: set[str] = field(default_factory=set)
    """Jobs whose pods find no node."""
    lying: dict[str, str] = field(default_factory=dict)
    """Jobs of which something else answers, and what is wrong with that."""
    skew: dict[int, float] = field(default_factory=dict)
    """By node, how far its clock is ahead."""
    sidecars: bool = False
    ttl: bool = False
    """A policy deletes Jobs as soon as they have ended."""

    def submit(self, name: str, **spec: Any) -> None:
        meta = {"namespace": NAMESPACE, "name": name, "generation": 1, "creationTimestamp": rfc3339(at(self.api.now))}
        deadlines = {"stall": "1m", "startup": "10m" if name not in self.homeless else "1d"}
        made = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta}
        self.api.put(
            FINETUNEJOBS, {**made, "spec": {**SPEC, "deadlines": deadlines, "retry": {"maxRestarts": 100}, **spec}}
        )

    def alive(self, job: str) -> set[int]:
        """Attempts that train, in truth."""
        return {each.attempt for each in self.trainers.values() if each.job == job and each.code is None}

    def crash(self, job: str) -> None:
        """One of its trainers fails, and its peers lose it."""
        running = [each for each in self.trainers.values() if each.job == job and each.code is None]
        up = [each for each in running if self.api.now - each.since > 60]
        if up:
            self.crashed.add((job, up[0].attempt))
            for number, each in enumerate(up):
                each.code = 70 if number == 0 else 83

    def step(self) -> None:
        """Twice, so that what follows at once does."""
        for _ in range(2):
            for raw in self.api.all(JOBS):
                self._job(raw)
            for raw in self.api.all(PODS):
                self._pod(raw)

    # the Job controller and the garbage collector

    def _pods(self, job: Raw) -> list[Raw]:
        uid = job["metadata"]["uid"]
        return [p for p in self.api.all(PODS) if _made(p) and p["metadata"]["ownerReferences"][0]["uid"] == uid]

    def _job(self, job: Raw) -> None:
        name, conditions = job["metadata"]["name"], {c["type"] for c in job.get("status", {}).get("conditions", ())}
        if "creationTimestamp" not in job["metadata"]:
            self.api.change(JOBS, name, metadata={"creationTimestamp": rfc3339(at(self.api.now))})
            return
        if conditions & {"Complete", "Failed"} and not self.ttl and "deletionTimestamp" not in job["metadata"]:
            return
        pods = self._pods(job)
        if "deletionTimestamp" in job["metadata"]:
            for pod in pods:
                self._delete(pod)
            if not pods:
                self.api.drop(JOBS, name)
            return
        if conditions & {"Complete", "Failed"}:
            if self.ttl:
                self.cleaned.add(name.rpartition("-")[0])
                self.api.change(JOBS, name, metadata={"deletionTimestamp": rfc3339(at(self.api.now))})
            return
        phases = [pod.get("status", {}).get("phase") for pod in pods]
        if "Failed" in phases:
            for pod in pods:
                self._delete(pod, finished=False)
            ended = all(phase in ("Failed", "Succeeded") for phase in phases)
            self._say(job, "Failed" if ended else "FailureTarget")
        elif phases.count("Succeeded") == job["spec"]["completions"]:
            self._say(job, "Complete")
        else:
            for index in range(len(pods), job["spec"]["completions"]):
                self._make(job, index)

    def _say(self, job: Raw, type: str) -> None:
        old = job.get("status", {}).get("conditions", [])
        if type not in {c["type"] for c in old}:
            new = {"type": type, "status": "True", "message": "", "lastTransitionTime": rfc3339(at(self.api.now))}
            self.api.change(JOBS, job["metadata"]["name"], status={"conditions": [*old, new]})

    def _make(self, job: Raw, index: int) -> None:
        name, template = job["metadata"]["name"], job["spec"]["template"]
        labels = {**template["metadata"]["labels"], CONTROLLER_UID: job["metadata"]["uid"]}
        meta = {
            "namespace": NAMESPACE,
            "name": f"{name}-{index}-{self.api.made}",
            "generateName": f"{name}-{index}-",
            "labels": {**labels, names.LABEL_COMPLETION_INDEX: str(index)},
            "creationTimestamp": rfc3339(at(self.api.now)),
            "ownerReferences": [{"kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": True}],
        }
        spec = {"hostname": f"{name}-{index}"}
        self.api.put(PODS, {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}})

    def _delete(self, pod: Raw, *, finished: bool = True) -> None:
        """What has ended goes at once, if asked for; what runs is told to end."""
        name, trainer = pod["metadata"]["name"], self.trainers.get(pod["metadata"]["uid"])
        phase = pod.get("status", {}).get("phase")
        if phase in ("Failed", "Succeeded") or trainer is None:
            if finished:
                self.api.drop(PODS, name)
            return
        if "deletionTimestamp" not in pod["metadata"]:
            trainer.told_at = self.api.now
            self.api.change(PODS, name, metadata={"deletionTimestamp": rfc3339(at(self.api.now + GRACE))})

    # kubelets

    def _pod(self, pod: Raw) -> None:
        meta, phase = pod["metadata"], pod.get("status", {}).get("phase")
        if phase not in ("Pending", "Running") or not _made(pod):
            return
        uid, trainer = meta["uid"], self.trainers.get(meta["uid"])
        if trainer is None:
            job, _, attempt = meta["ownerReferences"][0]["name"].rpartition("-")
            if job in self.homeless:
                self._find_no_node(pod)
                return
            node = int(pod["spec"]["hostname"].rpartition("-")[2])
            self.api.change(PODS, meta["name"], spec={"nodeName": f"n{node}"})
            self.trainers[uid] = Trainer(job, int(attempt), node, self.api.now)
            ready = {"type": "Ready", "status": "True"}
            status = {"phase": "Running", "podIP": f"10.{job[1:]}.0.{node}", "conditions": [ready]}
            self.api.change(PODS, meta["name"], status=status)
            return
        self._train(trainer)
        if trainer.code is not None:
            self._end(pod, trainer)

    def _find_no_node(self, pod: Raw) -> None:
        if "conditions" not in pod["status"]:
            lacks = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_NODE}
            self.api.change(PODS, pod["metadata"]["name"], status={"conditions": [lacks]})

    def _train(self, trainer: Trainer) -> None:
        length = 20.0 if trainer.job in self.finished else self.length  # an artifact that is there is found
        if trainer.code is None and trainer.told_at is not None and self.api.now - trainer.told_at > 10:
            trainer.code = 75
        elif trainer.code is None and self.api.now - trainer.since > length:
            trainer.code = 0
            self.finished.add(trainer.job)

    def _end(self, pod: Raw, trainer: Trainer) -> None:
        if trainer.sidecar_until is None:
            lingers = self.sidecars and trainer.code == 0
            trainer.sidecar_until = float("inf") if lingers else self.api.now
        told = trainer.told_at is not None and self.api.now - trainer.told_at > GRACE
        stays = self.api.now < trainer.sidecar_until and not told
        moment = rfc3339(at(self.api.now + self.skew.get(trainer.node, 0.0)))
        reason = {0: None, 75: Reason.Interrupted, 83: Reason.PeerLost}.get(trainer.code or 0, Reason.UnexpectedError)
        last = words(reason).model_copy(update={"time": moment}) if reason else DONE
        state = {"exitCode": trainer.code, "finishedAt": moment, "message": last.encode()}
        phase = "Running" if stays else "Failed" if trainer.code else "Succeeded"
        containers = [{"name": names.CONTAINER, "state": {"terminated": state}}]
        old = pod.get("status", {})
        if old.get("phase") != phase or "containerStatuses" not in old:
            self.api.change(PODS, pod["metadata"]["name"], status={"phase": phase, "containerStatuses": containers})


def _made(pod: Raw) -> bool:
    """By the Job controller. A copy is nothing that trains, also where it was adopted."""
    return "generateName" in pod["metadata"] and bool(pod["metadata"]["ownerReferences"])
