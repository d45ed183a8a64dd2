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
from finetune_operator.client import Invalid, NotFound
from finetune_operator.connection import connect
from finetune_operator.leader import Election
from finetune_operator.resources import JOBS, LEASES
from tests.cluster.rig import Rig
from tests.cluster.rig.state import free_ports
from tests.hands import Hands, Loop, manifest, wait_for
from tests.integration.exchange import only
from tests.integration.fault_proxy import FaultProxy
from tests.integration.faults import hold
from tests.operator_harness import Operator
from tests.operator_rights import ROOT
from tests.operator_stories import BROKEN, finish

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
    control_plane: Rig, hands: Hands, networks: tuple[FaultProxy, FaultProxy], accesses: list[Path]
) -> Iterator[Pair]:
    """Two replicas, each behind a network of its own; their Lease is in the test's namespace, and the first leads."""
    for network in networks:
        network.forget()
    allow_leases(control_plane, hands.namespace)
    started: list[Operator] = []

    def start(listen: tuple[str, str] = ("", ""), **times: float) -> tuple[Operator, Operator]:
        for who, access, address in zip("ab", accesses, listen, strict=True):
            chosen = election(hands.namespace, who, **times)
            started.append(Operator(access, hands.namespace, election=chosen, listen=address))
            wait_for(lambda: started[0].acting, what="the first leads")  # also where its rights come into force late
        return started[0], started[1]

    yield start
    for network in networks:
        network.heal()
        network.mend()
    for operator in started:
        operator.stop()


def allow_leases(rig: Rig, namespace: str) -> None:
    rig.kubectl("apply", "--server-side", "-n", namespace, "-f", ROOT / "operator" / "rbac-leader.yaml")
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "finetune-operator-leader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "finetune-operator-leader"},
        "subjects": [{"kind": "ServiceAccount", "name": "finetune-operator", "namespace": SYSTEM}],
    }
    rig.apply(binding, namespace=namespace)


class Witness:
    """What the API server's own watch says: the Jobs that were active at one time."""

    def __init__(self, hands: Hands) -> None:
        self.crowds: list[set[str]] = []
        self._hands, self._active = hands, dict[str, set[str]]()
        self._over = threading.Event()
        listing = hands._loop.call(hands._client.list(JOBS, hands.namespace))
        self._version = listing.version
        self._loop = Loop()
        self._done = self._loop.submit(self._watch())

    async def _watch(self) -> None:
        connection = await connect(str(self._hands.rig.kubeconfig))
        url = f"{connection.server}{JOBS.path(self._hands.namespace)}?watch=true&resourceVersion={self._version}"
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


def test_one_acts_and_hands_over_when_it_is_stopped(pair: Pair, hands: Hands) -> None:
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    first, second = pair((ports[0], ports[1]), lease=300, renew=200.0, retry=2.0)
    assert (first.acting, second.acting) == (True, False)
    told = [text(f"http://{port}/metrics") for port in ports]
    assert f"{names.LEADER} 1.0" in told[0].splitlines()
    assert f"{names.LEADER} 0.0" in told[1].splitlines()
    assert [text(f"http://{port}/{probe}") for port in ports for probe in ("healthz", "readyz")] == ["ok"] * 4
    hands.create(manifest("j"))
    hands.await_gang("j", 1)
    assert not second.writes

    first.stop()
    wait_for(lambda: second.acting, what="the other leads: the Lease was given back, not waited for")
    finish(hands, "j", 1)
    lease = hands.get("finetune-operator", LEASES)
    assert lease is not None
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("b", 2)


def test_two_processes_as_people_start_them(control_plane: Rig, hands: Hands, operator_kubeconfig: Path) -> None:
    """One leads; when it is told to go, the other one does, and a job made then is looked after."""
    allow_leases(control_plane, hands.namespace)
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    where = ["--namespace", hands.namespace, "--lease-namespace", hands.namespace]
    command = [sys.executable, "-m", "finetune_operator", "--leader-elect", *where]
    environ = os.environ | {"KUBECONFIG": str(operator_kubeconfig)}
    processes = [subprocess.Popen([*command, "--listen", port], env=environ) for port in ports]

    def leaders() -> list[int]:
        return [n for n, port in enumerate(ports) if f"{names.LEADER} 1.0" in answer(f"http://{port}/metrics")]

    try:
        wait_for(lambda: all(answer(f"http://{port}/readyz") for port in ports), what="both are ready")
        (first,) = wait_for(leaders, what="one leads")
        hands.create(manifest("a", nodes=1))
        hands.await_gang("a", 1)
        processes[first].terminate()
        assert processes[first].wait(120) == 0
        ports[first] = ports[1 - first]
        wait_for(leaders, what="the other leads")
        hands.create(manifest("b", nodes=1))
        hands.await_gang("b", 1)
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
    pair: Pair, hands: Hands, networks: tuple[FaultProxy, FaultProxy]
) -> None:
    """By the times of the defaults: it gives up after 10 seconds, and the other waits for 15."""
    first, second = pair(lease=15, renew=10.0, retry=2.0)
    hands.create(manifest("j"))
    _, pod = hands.run("j", 1)
    networks[0].cut()
    hands.end(pod, code=70, words=BROKEN)
    both: list[bool] = []
    wait_for(lambda: both.append(first.acting and second.acting) or second.acting, what="the other acts")
    assert not any(both)
    hands.await_gang("j", 2)
    networks[0].mend()
    finish(hands, "j", 2)


def test_whenever_the_network_is_cut_no_job_runs_twice(
    pair: Pair, hands: Hands, networks: tuple[FaultProxy, FaultProxy]
) -> None:
    """Both live on, and the leader's network goes at random moments, while gangs fail, stop and start."""
    replicas = pair()
    dice = random.Random(20260401)
    witness = Witness(hands)
    jobs = ["x", "y", "z"]
    for job in jobs:
        hands.create(manifest(job, nodes=1, retry={"maxRestarts": 20}))
    over = threading.Event()
    trouble = threading.Thread(target=make_trouble, args=(hands, jobs, over))
    trouble.start()
    changes = 0

    def attempts() -> int:
        return sum(hands.status(job).get("attempt", 0) for job in jobs)

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
        hands.set_spec(job, suspend=False)
        wait_for(lambda job=job: hands.status(job)["attempt"] and hands.jobs(), what="it goes on")


def make_trouble(hands: Hands, jobs: list[str], over: threading.Event) -> None:
    """What a kubelet and a user do, without waiting for anybody."""
    for turn in itertools.count():
        for job in jobs:
            if over.wait(0.15):
                return
            if turn % 4 == 3:
                hands.set_spec(job, suspend=not (hands.get(job) or {})["spec"].get("suspend", False))
                continue
            for pod in hands.gang(job, hands.status(job).get("attempt", 0)):
                with contextlib.suppress(NotFound, Invalid):  # it was deleted meanwhile, or has ended
                    if pod["status"]["phase"] == "Running":
                        hands.end(pod, code=70, words=BROKEN)
                    elif pod["status"]["phase"] == "Pending":
                        hands.set_pod(pod, {"phase": "Running", "podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}]})


def test_a_creation_that_arrives_late_is_the_successors_own(
    pair: Pair, hands: Hands, networks: tuple[FaultProxy, FaultProxy]
) -> None:
    """The old leader's request lies in the network until the new one has made the same Job."""
    first, second = pair(lease=6, renew=5.0)
    released = threading.Event()
    networks[0].inject(hold(released), when=only("create jobs"), times=1)
    hands.create(manifest("j"))
    wait_for(lambda: any(str(call) == "create jobs" for call in networks[0].calls), what="it is sent")
    networks[0].cut()
    witness = Witness(hands)
    wait_for(lambda: second.acting, what="the other leads")
    hands.await_gang("j", 1)
    uid = (hands.get("j-1", JOBS) or {})["metadata"]["uid"]
    released.set()
    wait_for(lambda: late_answer(networks[0]) == 409, what="it arrives, and is there already")
    networks[0].mend()
    assert not first.acting
    assert (hands.get("j-1", JOBS) or {})["metadata"]["uid"] == uid
    finish(hands, "j", 1)
    assert witness.end() == []


def test_a_creation_later_than_a_whole_attempt_is_undone_at_sight(
    pair: Pair, hands: Hands, networks: tuple[FaultProxy, FaultProxy]
) -> None:
    _, second = pair(lease=6, renew=5.0)
    released = threading.Event()
    networks[0].inject(hold(released), when=only("create jobs"), times=1)
    hands.create(manifest("j"))
    wait_for(lambda: any(str(call) == "create jobs" for call in networks[0].calls), what="it is sent")
    networks[0].cut()
    wait_for(lambda: second.acting, what="the other leads")
    _, pod = hands.run("j", 1)
    hands.end(pod, code=70, words=BROKEN)
    hands.await_gang("j", 2)
    wait_for(lambda: hands.jobs() == ["j-2"], what="attempt 1 is gone")
    released.set()
    wait_for(lambda: late_answer(networks[0]) == 201, what="it arrives, and is done")
    wait_for(lambda: second.writes["delete jobs"] == 2, what="the late Job is deleted too")
    wait_for(lambda: hands.jobs() == ["j-2"], what="it is gone")
    networks[0].mend()
    finish(hands, "j", 2)


def late_answer(network: FaultProxy) -> int:
    """What the API server said to the creation that was held back; 0 before."""
    return next((e.code for e in reversed(network.log) if str(e.call) == "create jobs" and e.reached), 0)


def text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())
