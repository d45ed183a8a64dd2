"""An operator under test on the real API server, and the hands that move its pods. A pytest plugin.

`Operator` runs one in a thread of its own, as the service account that operator/rbac.yaml describes. `Hands` does, as
an administrator, what a kubelet and a user would do. `Dying` is a client that ends for good after so many writes.

Fixtures: `hands` in a namespace of the test's own, and `start`, which starts operators that the test's end stops.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from finetune_api import names
from finetune_api.failures import LastWords
from finetune_operator.client import Client, HttpClient, Listing, NotFound
from finetune_operator.connection import connect
from finetune_operator.leader import Election
from finetune_operator.observe import Defaults
from finetune_operator.resources import FINETUNEJOBS, JOBS, PODS, SERVICES, Key, Raw, Resource
from finetune_operator.service import Options, Service
from tests.cluster.rig import Rig, RigError

ROOT = Path(__file__).parents[1]
T = TypeVar("T")

ACCOUNT = "system:serviceaccount:finetune-system:finetune-operator"

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
    ) -> None:
        self._loop = Loop()
        defaults = Defaults(image="trainer:test", grow_after=0.5)
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


def wait_for(ready: Callable[[], T], *, what: str, seconds: float = 120.0) -> T:
    """The first true answer. AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


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
class Hands:
    """An administrator in one namespace."""

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

    def end(self, pod: Raw, *, code: int = 0, words: LastWords | None = None, reason: str = "", text: str = "") -> None:
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


def install(rig: Rig) -> Path:
    """The CRD and the service account; the kubeconfig of that account."""
    rig.install_crd(ROOT / "crds" / "finetunejobs.finetune.dev.yaml")
    return rig.service_account_kubeconfig("finetune-system", "finetune-operator")


def allow(rig: Rig, namespace: str, *, account: str = "finetune-operator", file: str = "rbac.yaml") -> None:
    """The operator may look after this namespace, and no other: by a Role and a RoleBinding here, nothing beyond."""
    role = yaml.safe_load((ROOT / "operator" / file).read_text()) | {"kind": "Role"}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{account}-{role['metadata']['name']}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "finetune-system"}],
    }
    rig.apply([role, binding], namespace=namespace)
    if file == "rbac-gang.yaml":  # at its start the operator asks once what it may do
        rig.wait_allowed(
            "create", "podgroups.scheduling.k8s.io", namespace=namespace, account=f"finetune-system:{account}"
        )


Start = Callable[..., Operator]


@dataclass(frozen=True)
class Rights:
    """What the operator's files grant, and what its account asked for in a session, as (resource, verb)."""

    granted: frozenset[tuple[str, str]]
    used: frozenset[tuple[str, str]]
    missing: frozenset[tuple[str, str]]
    """Asked for, and never allowed."""

    @staticmethod
    def of(rig: Rig, *, since: int) -> Rights:
        asked = rig.audit.requests(since=since, user=ACCOUNT)
        used = frozenset((request.resource, request.verb) for request in asked if request.allowed)
        files = ("rbac.yaml", "rbac-leader.yaml", "rbac-gang.yaml")
        roles = [yaml.safe_load((ROOT / "operator" / file).read_text()) for file in files]
        rules = [rule for role in roles for rule in role["rules"]]
        granted = frozenset((r, verb) for rule in rules for r in rule["resources"] for verb in rule["verbs"])
        asked_for = {(request.resource, request.verb) for request in asked if request.resource and not request.allowed}
        return Rights(granted, used, frozenset(asked_for - used))


RIGHTS = pytest.StashKey[Rights]()

NEVER_SEEN = frozenset({("finetunejobs/finalizers", "update")})
"""Granted for an admission plugin that the rig's API server does not run."""


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A right that the whole session did not use is named: is it needed, or is a test missing?"""
    rights = config.stash.get(RIGHTS, None)
    if rights is None or not (unused := rights.granted - rights.used - NEVER_SEEN):
        return
    told = ", ".join(f"{verb} {resource}" for resource, verb in sorted(unused))
    terminalreporter.write_line(f"operator/rbac*.yaml: not used in this session: {told}")


@pytest.fixture(scope="session")
def operator_kubeconfig(control_plane: Rig, pytestconfig: pytest.Config) -> Iterator[Path]:
    """Of the account with exactly the rights of operator/rbac.yaml. One that is missing fails the session."""
    mark = 0 if control_plane.external else control_plane.audit.mark()
    yield install(control_plane)
    if control_plane.external:
        return
    rights = pytestconfig.stash[RIGHTS] = Rights.of(control_plane, since=mark)
    assert not rights.missing, f"operator/rbac*.yaml lack what the operator asked for: {sorted(rights.missing)}"


@pytest.fixture
def hands(control_plane: Rig, namespace: str) -> Iterator[Hands]:
    allow(control_plane, namespace)
    hands = Hands(control_plane, namespace)
    yield hands
    hands.close()


@pytest.fixture
def start(operator_kubeconfig: Path, hands: Hands) -> Iterator[Start]:
    started: list[Operator] = []

    def start(**options: Any) -> Operator:
        started.append(Operator(operator_kubeconfig, hands.namespace, **options))
        return started[-1]

    yield start
    for operator in started:
        operator.stop()
