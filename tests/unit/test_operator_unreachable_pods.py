"""Pods on silent nodes: which are waited for before another attempt begins."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import FailureClass, LastFailure, Phase
from finetune_operator.decide import decide
from finetune_operator.diagnosis.unreachable_pods import PATIENCE, awaited
from finetune_operator.kube.resources import JOBS
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import find, rfc3339
from finetune_operator.state.views import ChildJob, Pod
from tests.support.operator_objects import NOW, child, job, later, pod, seen, spec, status

ENDS = 120.0
LATE = ENDS + PATIENCE.total_seconds()


def silent(index: int = 1, **fields: Any) -> Pod:
    known = {"phase": "Running", "node": "gpu-7", "deleting": True, "ends": later(ENDS), "unreachable": True}
    return pod(index, **known | fields)


def done(index: int = 0) -> Pod:
    return pod(index, "Failed", node="gpu-1")


OLD = (child(deleting=True),)

CASES: list[tuple[str, tuple[Pod, ...], tuple[ChildJob, ...], float, int]] = [
    ("its peer has ended, long ago", (done(), silent()), OLD, LATE, 0),
    ("its peer is gone", (silent(),), OLD, LATE, 0),
    ("not long enough", (done(), silent()), OLD, LATE - 1, 1),
    ("it was not told to end", (done(), silent(deleting=False, ends=None)), OLD, LATE, 1),
    ("its node reports", (done(), silent(unreachable=False)), OLD, 9999, 1),
    ("it had a node and never began", (done(), silent(phase="Pending", unreachable=False)), OLD, LATE, 0),
    ("it never had a node", (done(), silent(phase="Pending", unreachable=False, node="")), OLD, LATE, 1),
    ("the whole gang is silent", (silent(0), silent(1)), OLD, 9999, 2),
    ("the only pod", (silent(0),), (child(deleting=True, nodes=1),), 9999, 1),
    ("how many there were is not known any more", (silent(),), (), 9999, 1),
    ("a pod of another attempt is no peer", (pod(0, "Failed", 3), silent()), (child(deleting=True, nodes=1),), 9999, 1),
]  # fmt: skip


@pytest.mark.parametrize(("pods", "children", "after", "number"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_who_is_waited_for(pods: tuple[Pod, ...], children: tuple[ChildJob, ...], after: float, number: int) -> None:
    assert len(awaited(pods, children, spec(), later(after))) == number


def test_a_script_may_need_no_peer() -> None:
    script = spec(command=["train.py"], model=None, data=None, output=None)
    assert len(awaited((done(), silent()), OLD, script, later(9999))) == 1


def restarting(*pods: Pod) -> Observed:
    failure = LastFailure(failure_class=FailureClass.Infrastructure, reason="NodeLost", time=rfc3339(NOW), attempt=1)
    return seen(job(status(Phase.Restarting, 2, counted=1, last_failure=failure)), children=OLD, pods=pods)


def test_the_next_attempt_begins_without_it_and_says_so() -> None:
    decision = decide(restarting(done(), silent()), later(LATE))
    assert [each.resource for each in decision.create if each.resource is JOBS] == [JOBS]
    (event,) = decision.events
    assert (event.reason, event.type, "a-1-1-x on node gpu-7" in event.message) == (Reason.NodeLost, "Warning", True)


def test_until_then_the_status_names_it() -> None:
    decision = decide(restarting(done(), silent()), later(LATE - 1))
    assert decision.create == ()
    told = find(decision.status, "Running")
    assert told is not None
    assert "a-1-1-x on node gpu-7" in told.message
