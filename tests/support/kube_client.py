"""A client of a real API server, as an administrator: it does what a kubelet and a user would do to a job's pods."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from finetune_api import names
from finetune_api.failures import TerminationMessage
from finetune_operator.kube.client import HttpClient, NotFound
from finetune_operator.kube.connection import connect
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, SERVICES, Raw, Resource
from tests.cluster.rig import Rig, RigError

T = TypeVar("T")

DISCOVERY = 240.0
"""Seconds, and more, in which the garbage collector learns of a CRD that is new: it looks twice a minute."""


class Loop:
    """An event loop in a thread; `call` runs a coroutine there and waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float = 60) -> T:
        return self.submit(coroutine).result(timeout)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def wait_for(ready: Callable[[], T], *, what: str, seconds: float = 120.0, state: Callable[[], str] = lambda: "") -> T:
    """The first true answer. AssertionError after `seconds`, with the `state` of then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what} {state()}".rstrip())


def manifest(name: str, **spec: Any) -> Raw:
    """The short form, on two nodes."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "hf://org/model"},
            "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
            "output": {"uri": "s3://corp/out"},
            "nodes": 2,
            **spec,
        },
    }


@dataclass
class Kube:
    """An administrator's client in one namespace."""

    rig: Rig
    namespace: str
    _loop: Loop = field(default_factory=Loop)

    def __post_init__(self) -> None:
        async def build() -> HttpClient:
            connection = await connect(str(self.rig.kubeconfig))
            self._session = connection.session(lambda *_: None)
            return HttpClient(self._session, connection.server)

        self._client = self._loop.call(build())

    def close(self) -> None:
        self._loop.call(self._session.close())
        self._loop.close()

    def create(self, body: Raw, resource: Resource = FINETUNEJOBS) -> Raw:
        body["metadata"]["namespace"] = self.namespace
        return self._loop.call(self._client.create(resource, body))

    def get(self, name: str, resource: Resource = FINETUNEJOBS) -> Raw | None:
        try:
            return self._loop.call(self._client.get(resource, (self.namespace, name)))
        except NotFound:
            return None

    def list(self, resource: Resource) -> list[Raw]:
        return self._loop.call(self._client.list(resource, self.namespace)).items

    def delete(
        self, name: str, resource: Resource = FINETUNEJOBS, policy: str = "Background", *, grace: int | None = None
    ) -> None:
        body: Raw = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        self._loop.call(self._client._request("DELETE", resource.path(self.namespace, name), body=body))

    def patch(self, name: str, body: Raw, resource: Resource = FINETUNEJOBS, subresource: str = "") -> Raw:
        path = resource.path(self.namespace, name, subresource)
        content = "application/merge-patch+json"
        return self._loop.call(self._client._request("PATCH", path, body=body, content=content))

    def request(self, method: str, path: str, body: Raw | None = None) -> Raw:
        """Of whatever there is no method for."""
        return self._loop.call(self._client._request(method, path, body=body))

    def quota(self, **hard: str) -> None:
        """A ResourceQuota `q`, in force: the API server refuses by it, which it does some time after it was made."""
        limits = {**hard, "count/configmaps": "0"}
        body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": limits}}
        self.rig.apply(body, namespace=self.namespace)
        probe = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "probe-"}})

        def refuses() -> bool:
            try:
                self.rig.kubectl("create", "-n", self.namespace, "-f", "-", stdin=probe)
            except RigError as error:
                return "exceeded quota" in str(error)
            return False

        wait_for(refuses, what="quota")

    def set_spec(self, name: str, **fields: Any) -> None:
        self.patch(name, {"spec": fields})

    # what is there

    def status(self, name: str) -> Raw:
        found = self.get(name)
        return (found or {}).get("status", {})

    def phase(self, name: str) -> str:
        return self.status(name).get("phase", "")

    def condition(self, name: str, type: str) -> Raw:
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == type), {})

    def jobs(self) -> list[str]:
        return sorted(job["metadata"]["name"] for job in self.list(JOBS))

    def services(self) -> list[str]:
        return sorted(service["metadata"]["name"] for service in self.list(SERVICES))

    def let_go(self, job: str) -> None:
        """What a queue does when it admits a Job."""
        wait_for(lambda: (self.get(job, JOBS) or {}).get("spec", {}).get("suspend"), what=f"{job} suspended")
        self.patch(job, {"spec": {"suspend": False}}, JOBS)

    def take_back(self, job: str) -> None:
        """What a queue does when it preempts a Job."""
        self.patch(job, {"spec": {"suspend": True}}, JOBS)

    def gang(self, job: str, attempt: int) -> list[Raw]:
        """The attempt's pods in order, or none while they are not all there."""
        own = {names.LABEL_JOB: job, names.LABEL_ATTEMPT: str(attempt)}
        pods = [p for p in self.list(PODS) if own.items() <= p["metadata"]["labels"].items()]
        pods.sort(key=lambda p: int(p["metadata"]["labels"][names.LABEL_COMPLETION_INDEX]))
        child = self.get(f"{job}-{attempt}", JOBS)
        return pods if child and len(pods) == child["spec"]["completions"] else []

    # what a kubelet does

    def await_gang(self, job: str, attempt: int) -> list[Raw]:
        return wait_for(lambda: self.gang(job, attempt), what=f"the pods of attempt {attempt} of {job}")

    def run(self, job: str, attempt: int) -> list[Raw]:
        """All pods of the attempt run."""
        pods = self.await_gang(job, attempt)
        for pod in pods:
            self.set_pod(pod, {"phase": "Running", "podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}]})
        wait_for(lambda: self.phase(job) == "Running", what=f"{job} runs: {self.status(job)}")
        return pods

    def set_pod(self, pod: Raw, status: Raw) -> None:
        self.patch(pod["metadata"]["name"], {"status": status}, PODS, "status")

    def bind(self, pod: Raw, node: str) -> None:
        """It gets a node; there need be none of that name."""
        name = pod["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        path = PODS.path(self.namespace, name, "binding")
        self._loop.call(self._client._request("POST", path, body=body))

    def schedule(self, *pods: Raw) -> None:
        """They have a node."""
        for pod in pods:
            self.set_pod(
                pod, {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": _now()}]}
            )

    def find_no_node(self, pod: Raw, why: str = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu") -> None:
        lacks = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
        self.set_pod(pod, {"conditions": [{**lacks, "lastTransitionTime": _now()}]})

    def probe(self, job: str, attempt: int) -> list[Raw]:
        """The pods that look for more nodes for the attempt; none while they are not all there."""
        child = self.get(names.probe_name(job, attempt), JOBS)
        if child is None:
            return []
        own = child["metadata"]["labels"][names.LABEL_PROBE]
        pods = [p for p in self.list(PODS) if p["metadata"]["labels"].get(names.LABEL_PROBE) == own]
        return pods if len(pods) == child["spec"]["parallelism"] else []

    def end(
        self, pod: Raw, *, code: int = 0, words: TerminationMessage | None = None, reason: str = "", text: str = ""
    ) -> None:
        """Its container ends."""
        now = _now()
        ended = {
            "exitCode": code,
            "reason": reason or ("Error" if code else "Completed"),
            "message": words.encode() if words else text,
            "startedAt": now,
            "finishedAt": now,
        }
        container = {
            "name": names.CONTAINER,
            "image": "trainer:test",
            "imageID": "sha256:0",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": ended},
        }
        phase = "Failed" if code else "Succeeded"
        self.set_pod(pod, {"phase": phase, "containerStatuses": [container]})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
