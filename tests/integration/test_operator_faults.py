"""Everything that goes wrong between the operator and the API server, and passes: a job reaches the same end.

Each fault is made by a proxy in front of the real API server. The operator neither ends nor hammers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.kube import client, kopf_watch
from tests.cluster.rig import Rig
from tests.cluster.rig.control_plane import FAKE_PODS_LABEL
from tests.integration.exchange import Fault, anything, only, watches, writes
from tests.integration.fault_proxy import FaultProxy
from tests.integration.faults import drop_after, duplicate, gone, late, lose_answer, refuse, reset, slow, stall
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Operator
from tests.support.operator_rbac import allow
from tests.support.operator_scenarios import BROKEN, finish, left, restart

lists = only("list jobs", "list pods")

FAULTS: list[tuple[str, Fault, dict[str, Any]]] = [
    ("nothing", refuse(500), {"times": 0}),
    ("500 for a while", refuse(500, reason="InternalError"), {"times": 16}),
    ("503 for a while", refuse(503, reason="ServiceUnavailable"), {"times": 16}),
    ("503 for all writes for a while", refuse(503), {"when": writes, "times": 8}),
    ("429 with Retry-After", refuse(429, reason="TooManyRequests", retry_after=1), {"times": 4}),
    ("409 on status", refuse(409, reason="Conflict"), {"when": only("update finetunejobs/status"), "times": 4}),
    ("409 on deletion", refuse(409, reason="Conflict"), {"when": only("delete jobs"), "times": 1}),
    ("422 on status", refuse(422, reason="Invalid"), {"when": only("update finetunejobs/status"), "times": 3}),
    ("410 for lists", refuse(410, reason="Expired"), {"when": lists, "times": 4}),
    ("410 for watches", refuse(410, reason="Expired"), {"when": watches, "times": 5}),
    ("410 within watches", gone(), {"when": watches, "times": 5}),
    ("500 for watches", refuse(500), {"when": watches, "times": 4}),
    ("expired token", refuse(401, reason="Unauthorized"), {"times": 8}),
    ("connections reset", reset(), {"times": 16}),
    ("answers lost", lose_answer(), {"when": writes, "times": 8}),
    ("answers lost as 500", lose_answer(500), {"when": writes, "times": 8}),
    ("slow answers", slow(0.3), {"when": anything}),
    ("watches break", drop_after(2), {"when": watches}),
    ("watches stall", stall(), {"when": watches, "times": 3}),
    ("events three times", duplicate(), {"when": watches}),
    ("events late", late(0.4), {"when": watches}),
]

AT_ONCE = 5

BUSIEST = 60
"""Requests in any second, at most, for one job."""


@pytest.fixture(scope="module")
def network(control_plane: Rig) -> Iterator[FaultProxy]:
    with FaultProxy.before(control_plane) as proxy:
        yield proxy


@pytest.fixture
def proxy(network: FaultProxy) -> Iterator[FaultProxy]:
    network.forget()
    yield network
    network.heal()


@pytest.fixture(scope="module")
def through(control_plane: Rig, operator_kubeconfig: Path, network: FaultProxy) -> Path:
    return control_plane.service_account_kubeconfig("finetune-system", "finetune-operator", server=network.address)


@dataclass(frozen=True)
class Outcome:
    end: dict[str, Any]
    stopped: bool
    """The operator ended by itself."""
    busiest: int


@pytest.fixture(scope="module")
def outcomes(control_plane: Rig, operator_kubeconfig: Path) -> Iterator[dict[str, Future[Outcome]]]:
    """All rows, several at a time: each with a namespace, a network and an operator of its own."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(AT_ONCE) as pool:
        for module in (client, kopf_watch):
            patch.setattr(module, "INACTIVITY", 3.0)
        yield {name: pool.submit(play, control_plane, fault, where) for name, fault, where in FAULTS}


def play(rig: Rig, fault: Fault, where: dict[str, Any]) -> Outcome:
    """A job fails, restarts and succeeds, while the fault is there."""
    namespace = rig.create_namespace("fault", labels={FAKE_PODS_LABEL: "fake"})
    allow(rig, namespace)
    early = where.get("when") in (watches, lists)  # an open watch sees nothing of it
    with FaultProxy.before(rig) as proxy, contextlib.closing(Kube(rig, namespace)) as kube:
        access = rig.service_account_kubeconfig("finetune-system", "finetune-operator", server=proxy.address)
        if early:
            proxy.inject(fault, **where)
        operator = Operator(access, namespace)
        try:
            if not early:
                proxy.inject(fault, **where)
            restart(kube, "j")
            outcome = Outcome(left(kube, "j"), operator.stopped, proxy.most_per_second())
        finally:
            proxy.heal()
            operator.stop()
    rig.delete_namespace(namespace)
    return outcome


@pytest.mark.parametrize("name", [name for name, *_ in FAULTS])
def test_a_job_reaches_the_same_end(outcomes: dict[str, Future[Outcome]], name: str) -> None:
    outcome = outcomes[name].result()
    assert outcome.end == outcomes["nothing"].result().end
    assert not outcome.stopped
    assert outcome.busiest <= BUSIEST


@pytest.mark.parametrize("components", [("apiserver",), ("apiserver", "etcd")], ids="+".join)
def test_a_restart_of_the_cluster_itself_passes(
    kube: Kube, proxy: FaultProxy, through: Path, control_plane: Rig, components: tuple[str, ...]
) -> None:
    operator = Operator(through, kube.namespace)
    try:
        kube.create(manifest("j"))
        _, second = kube.run("j", 1)
        with contextlib.ExitStack() as stack:
            for component in components:
                stack.enter_context(control_plane.outage(component, kill=True))
            time.sleep(1)
        wait_for(lambda: answers(kube), what="the API server is back")
        kube.end(second, code=70, words=BROKEN)
        wait_for(lambda: kube.gang("j", 2), what="attempt 2, by a Job controller that was cut off too", seconds=240)
        finish(kube, "j", 2)
        assert left(kube, "j")["status"]["restarts"] == {"counted": 1, "free": 0}
        assert not operator.stopped
    finally:
        operator.stop()
    assert proxy.most_per_second() <= BUSIEST


@pytest.mark.parametrize(
    ("name", "fault"), [("silent", refuse(503)), ("resetting", reset()), ("busy", refuse(429, retry_after=1))]
)
def test_a_hundred_jobs_do_not_hammer_an_api_server_in_trouble(
    kube: Kube, proxy: FaultProxy, through: Path, name: str, fault: Fault
) -> None:
    """All of them want something just then; what is asked in a second does not grow with their number."""
    operator = Operator(through, kube.namespace)
    try:
        proxy.inject(fault, when=writes)
        for number in range(100):
            kube.create(manifest(f"j{number}", nodes=1, suspend=True))
        wait_for(lambda: len(proxy.calls) > 10, what="it tries")
        time.sleep(2)
        mark = time.monotonic()
        time.sleep(4)
        busiest = proxy.most_per_second(since=mark)
        proxy.heal()
        wait_for(lambda: all(kube.phase(f"j{n}") == "Suspended" for n in (0, 50, 99)), what="all is done after it")
        assert busiest <= 20, name
        assert not operator.stopped
    finally:
        operator.stop()


def answers(kube: Kube) -> bool:
    try:
        kube.status("j")
    except Exception:
        return False
    return True
