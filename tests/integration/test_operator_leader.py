"""Two replicas and one Lease: one acts, the other takes over, and no job is ever run twice."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from finetune_api import names
from finetune_api import series as metric
from finetune_operator.kube.client import Invalid, NotFound
from finetune_operator.kube.connection import connect
from finetune_operator.kube.leader import Election
from finetune_operator.kube.resources import JOBS, LEASES
from tests.cluster.rig import Rig
from tests.cluster.rig.state import free_ports
from tests.integration.exchange import only
from tests.integration.fault_proxy import FaultProxy
from tests.integration.faults import hold
from tests.support.kube_client import Kube, Loop, manifest, wait_for
from tests.support.operator_harness import Operator, lease_given_back
from tests.support.operator_rbac import allow
from tests.support.operator_scenarios import BROKEN, finish

SYSTEM = "finetune-system"


def election(namespace: str, who: str, **times: float) -> Election:
    return Election(namespace=namespace, identity=who, **{"lease": 4, "renew": 3.0, "retry": 0.4, **times})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def networks(control_plane: Rig) -> Iterator[tuple[FaultProxy, FaultProxy]]:
    with FaultProxy.before(control_plane) as one, FaultProxy.before(control_plane) as other:
        yield one, other


@pytest.fixture(scope="module")
def accesses(control_plane: Rig, operator_kubeconfig: Path, networks: tuple[FaultProxy, ...]) -> list[Path]:
    return [
        control_plane.service_account_kubeconfig(SYSTEM, "finetune-operator", server=each.address) for each in networks
    ]


Pair = Callable[..., tuple[Operator, Operator]]


@pytest.fixture
def pair(
    control_plane: Rig, kube: Kube, networks: tuple[FaultProxy, FaultProxy], accesses: list[Path]
) -> Iterator[Pair]:
    """Two replicas, each behind a network of its own; their Lease is in the test's namespace, and the first leads."""
    for network in networks:
        network.forget()
    allow(control_plane, kube.namespace, file="rbac-leader.yaml")
    lease_given_back(kube)
    started: list[Operator] = []

    def start(listen: tuple[str, str] = ("", ""), **times: float) -> tuple[Operator, Operator]:
        for who, access, address in zip("ab", accesses, listen, strict=True):
            chosen = election(kube.namespace, who, **times)
            started.append(Operator(access, kube.namespace, election=chosen, listen=address))
            wait_for(lambda: started[0].acting, what="the first leads")  # also where its rights come into force late
        return started[0], started[1]

    yield start
    for network in networks:
        network.heal()
        network.mend()
    for operator in started:
        operator.stop()


class Witness:
    """What the API server's own watch says: the Jobs that were active at one time."""

    def __init__(self, kube: Kube) -> None:
        self.crowds: list[set[str]] = []
        self._kube, self._active = kube, dict[str, set[str]]()
        self._over = threading.Event()
        listing = kube._loop.call(kube._client.list(JOBS, kube.namespace))
        self._version = listing.version
        self._loop = Loop()
        self._done = self._loop.submit(self._watch())

    async def _watch(self) -> None:
        connection = await connect(str(self._kube.rig.kubeconfig))
        url = f"{connection.server}{JOBS.path(self._kube.namespace)}?watch=true&resourceVersion={self._version}"
        async with connection.session(lambda *_: None) as session:
            timeout = aiohttp.ClientTimeout(total=None, sock_read=1)
            while not self._over.is_set():
                try:
                    async with session.get(url, timeout=timeout) as answer:
                        async for line in answer.content:
                            self._see(orjson.loads(line))
                except TimeoutError:
                    url = f"{url.rpartition('=')[0]}={self._version}"

    def _see(self, event: dict[str, Any]) -> None:
        raw = event["object"]
        meta = raw["metadata"]
        self._version = meta["resourceVersion"]
        ended = any(
            c["type"] in ("Complete", "Failed", "FailureTarget", "SuccessCriteriaMet") and c["status"] == "True"
            for c in raw.get("status", {}).get("conditions", [])
        )
        active = event["type"] != "DELETED" and "deletionTimestamp" not in meta and not ended
        jobs = self._active.setdefault(meta["labels"][names.LABEL_JOB], set())
        (jobs.add if active else jobs.discard)(meta["name"])
        if len(jobs) > 1:
            self.crowds.append(set(jobs))

    def end(self) -> list[set[str]]:
        self._over.set()
        self._done.result(60)
        self._loop.close()
        return self.crowds


def test_one_acts_and_hands_over_when_it_is_stopped(pair: Pair, kube: Kube) -> None:
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    first, second = pair((ports[0], ports[1]), lease=300, renew=200.0, retry=2.0)
    assert (first.acting, second.acting) == (True, False)
    told = [text(f"http://{port}/metrics") for port in ports]
    assert f"{metric.LEADER} 1.0" in told[0].splitlines()
    assert f"{metric.LEADER} 0.0" in told[1].splitlines()
    assert [text(f"http://{port}/{probe}") for port in ports for probe in ("healthz", "readyz")] == ["ok"] * 4
    kube.create(manifest("j"))
    kube.await_gang("j", 1)
    assert not second.writes

    first.stop()
    wait_for(lambda: second.acting, what="the other leads: the Lease was given back, not waited for")
    finish(kube, "j", 1)
    lease = kube.get("finetune-operator", LEASES)
    assert lease is not None
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("b", 2)


def test_two_processes_as_people_start_them(control_plane: Rig, kube: Kube, operator_kubeconfig: Path) -> None:
    """One leads; when it is told to go, the other one does, and a job made then is looked after."""
    allow(control_plane, kube.namespace, file="rbac-leader.yaml")
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    where = ["--namespace", kube.namespace, "--lease-namespace", kube.namespace]
    command = [sys.executable, "-m", "finetune_operator", "--leader-elect", *where]
    environ = os.environ | {"KUBECONFIG": str(operator_kubeconfig)}
    processes = [subprocess.Popen([*command, "--listen", port], env=environ) for port in ports]

    def leaders() -> list[int]:
        return [n for n, port in enumerate(ports) if f"{metric.LEADER} 1.0" in answer(f"http://{port}/metrics")]

    try:
        wait_for(lambda: all(answer(f"http://{port}/readyz") for port in ports), what="both are ready")
        (first,) = wait_for(leaders, what="one leads")
        kube.create(manifest("a", nodes=1))
        kube.await_gang("a", 1)
        processes[first].terminate()
        assert processes[first].wait(120) == 0
        ports[first] = ports[1 - first]
        wait_for(leaders, what="the other leads")
        kube.create(manifest("b", nodes=1))
        kube.await_gang("b", 1)
    finally:
        for process in processes:
            process.terminate()
            process.wait(120)


def answer(url: str) -> str:
    """Nothing while nobody answers."""
    try:
        return text(url)
    except OSError:
        return ""


def test_a_leader_without_network_steps_down_before_another_one_acts(
    pair: Pair, kube: Kube, networks: tuple[FaultProxy, FaultProxy]
) -> None:
    """By the times of the defaults: it gives up after 10 seconds, and the other waits for 15."""
    first, second = pair(lease=15, renew=10.0, retry=2.0)
    kube.create(manifest("j"))
    _, pod = kube.run("j", 1)
    networks[0].cut()
    kube.end(pod, code=70, words=BROKEN)
    both: list[bool] = []
    wait_for(lambda: both.append(first.acting and second.acting) or second.acting, what="the other acts")
    assert not any(both)
    kube.await_gang("j", 2)
    networks[0].mend()
    finish(kube, "j", 2)


def test_whenever_the_network_is_cut_no_job_runs_twice(
    pair: Pair, kube: Kube, networks: tuple[FaultProxy, FaultProxy]
) -> None:
    """Both live on, and the leader's network goes at random moments, while gangs fail, stop and start."""
    replicas = pair()
    dice = random.Random(20260401)
    witness = Witness(kube)
    jobs = ["x", "y", "z"]
    for job in jobs:
        kube.create(manifest(job, nodes=1, retry={"maxRestarts": 20}))
    over = threading.Event()
    trouble = threading.Thread(target=make_trouble, args=(kube, jobs, over))
    trouble.start()
    changes = 0

    def attempts() -> int:
        return sum(kube.status(job).get("attempt", 0) for job in jobs)

    try:
        end = time.monotonic() + 300
        while (changes < 5 or attempts() <= 2 * len(jobs)) and time.monotonic() < end:
            time.sleep(dice.uniform(0.2, 2.5))
            leader = next((n for n, each in enumerate(replicas) if each.acting), None)
            if leader is None:
                continue
            networks[leader].cut()
            other = replicas[1 - leader]
            wait_for(lambda other=other: other.acting, what="the other takes over")
            changes += 1
            networks[leader].mend()
    finally:
        over.set()
        trouble.join()
        for network in networks:
            network.mend()
    assert witness.end() == []
    assert changes >= 5
    assert attempts() > 2 * len(jobs)
    assert not any(each.stopped for each in replicas)
    for job in jobs:
        kube.set_spec(job, suspend=False)
        wait_for(lambda job=job: kube.status(job)["attempt"] and kube.jobs(), what="it goes on")


def make_trouble(kube: Kube, jobs: list[str], over: threading.Event) -> None:
    """What a kubelet and a user do, without waiting for anybody."""
    for turn in itertools.count():
        for job in jobs:
            if over.wait(0.15):
                return
            if turn % 4 == 3:
                kube.set_spec(job, suspend=not (kube.get(job) or {})["spec"].get("suspend", False))
                continue
            for pod in kube.gang(job, kube.status(job).get("attempt", 0)):
                with contextlib.suppress(NotFound, Invalid):  # it was deleted meanwhile, or has ended
                    if pod["status"]["phase"] == "Running":
                        kube.end(pod, code=70, words=BROKEN)
                    elif pod["status"]["phase"] == "Pending":
                        kube.set_pod(pod, {"phase": "Running", "podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}]})


def test_a_creation_that_arrives_late_is_the_successors_own(
    pair: Pair, kube: Kube, networks: tuple[FaultProxy, FaultProxy]
) -> None:
    """The old leader's request lies in the network until the new one has made the same Job."""
    first, second = pair(lease=6, renew=5.0)
    released = creation_held_back(kube, networks[0])
    witness = Witness(kube)
    wait_for(lambda: second.acting, what="the other leads")
    kube.await_gang("j", 1)
    uid = (kube.get("j-1", JOBS) or {})["metadata"]["uid"]
    released.set()
    wait_for(lambda: late_answer(networks[0]) == 409, what="it arrives, and is there already")
    assert not first.acting
    networks[0].mend()
    assert (kube.get("j-1", JOBS) or {})["metadata"]["uid"] == uid
    finish(kube, "j", 1)
    assert witness.end() == []


def test_a_creation_later_than_a_whole_attempt_is_undone_at_sight(
    pair: Pair, kube: Kube, networks: tuple[FaultProxy, FaultProxy]
) -> None:
    _, second = pair(lease=6, renew=5.0)
    released = creation_held_back(kube, networks[0])
    wait_for(lambda: second.acting, what="the other leads")
    _, pod = kube.run("j", 1)
    kube.end(pod, code=70, words=BROKEN)
    kube.await_gang("j", 2)
    wait_for(lambda: kube.jobs() == ["j-2"], what="attempt 1 is gone")
    released.set()
    wait_for(lambda: late_answer(networks[0]) == 201, what="it arrives, and is done")
    wait_for(lambda: second.writes["delete jobs"] == 2, what="the late Job is deleted too")
    wait_for(lambda: kube.jobs() == ["j-2"], what="it is gone")
    networks[0].mend()
    finish(kube, "j", 2)


def creation_held_back(kube: Kube, network: FaultProxy) -> threading.Event:
    """A job whose leader has sent the creation of its Job into a network that delivers it once the event is set."""
    released = threading.Event()
    network.inject(hold(released), when=only("create jobs"), times=1)
    kube.create(manifest("j"))
    wait_for(lambda: any(str(call) == "create jobs" for call in network.calls), what="it is sent")
    network.cut()
    return released


def late_answer(network: FaultProxy) -> int:
    """What the API server said to the creation that was held back; 0 before."""
    return next((e.code for e in reversed(network.log) if str(e.call) == "create jobs" and e.reached), 0)


def text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())
