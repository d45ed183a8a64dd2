"""Everything that goes wrong between the operator and the API server, and passes: a job reaches the same end.

Each fault is made by a proxy in front of the real API server. The operator neither ends nor hammers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_operator import watch
from tests.cluster.rig import Rig
from tests.integration.fault_proxy import (
    Fault,
    FaultProxy,
    anything,
    drop_after,
    duplicate,
    gone,
    late,
    lose_answer,
    only,
    refuse,
    reset,
    slow,
    stall,
    watches,
    writes,
)
from tests.operator_harness import Hands, Operator
from tests.operator_stories import left, restart

lists = only("list jobs", "list pods")

FAULTS: list[tuple[str, Fault, dict[str, Any]]] = [
    ("nothing", refuse(500), {"times": 0}),
    ("500 for a while", refuse(500, reason="InternalError"), {"times": 16}),
    ("503 for a while", refuse(503, reason="ServiceUnavailable"), {"times": 16}),
    ("503 for all writes for a while", refuse(503), {"when": writes, "times": 8}),
    ("429 with Retry-After", refuse(429, reason="TooManyRequests", retry_after=1), {"times": 4}),
    ("409 on status", refuse(409, reason="Conflict"), {"when": only("patch finetunejobs/status"), "times": 4}),
    ("409 on deletion", refuse(409, reason="Conflict"), {"when": only("delete jobs"), "times": 1}),
    ("422 on status", refuse(422, reason="Invalid"), {"when": only("patch finetunejobs/status"), "times": 3}),
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

END: dict[str, Any] = {}
"""What is left without a fault: the first row's."""

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


@pytest.mark.parametrize(("name", "fault", "where"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_a_job_reaches_the_same_end(
    hands: Hands,
    proxy: FaultProxy,
    through: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fault: Fault,
    where: dict[str, Any],
) -> None:
    monkeypatch.setattr(watch, "INACTIVITY", 3.0)
    early = where.get("when") in (watches, lists)  # an open watch sees nothing of it
    if early:
        proxy.inject(fault, **where)
    operator = Operator(through, hands.namespace)
    try:
        if not early:
            proxy.inject(fault, **where)
        restart(hands, "j")
        end = left(hands, "j")
        assert not operator.stopped
    finally:
        proxy.heal()
        operator.stop()
    if name == "nothing":
        END.update(end)
    assert end == END
    assert proxy.most_per_second() <= BUSIEST
