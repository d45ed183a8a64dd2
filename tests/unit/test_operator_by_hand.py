"""What people and nodes do to a healthy gang: a Job scaled by hand, a readiness gate, a pod that is turned away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.status import Phase
from finetune_operator.decide import decide
from finetune_operator.diagnosis.root_cause import blame, evidence_of
from finetune_operator.state.parsing import view_child_job, view_pod
from finetune_operator.state.status import failure_of, find
from tests.support.operator_objects import NOW, child, failed_pod, job, later, pod, raw_pod, seen, status


def raw_child(**spec: Any) -> dict[str, Any]:
    labels = {names.LABEL_JOB: "a", names.LABEL_UID: "u", names.LABEL_ATTEMPT: "1"}
    managers = [{"manager": "kubectl-edit", "fieldsV1": {"f:spec": {"f:parallelism": {}}}}]
    meta = {"namespace": "ml", "name": "a-1", "uid": "c1", "resourceVersion": "1", "labels": labels}
    return {"metadata": meta | {"managedFields": managers}, "spec": {"completions": 2, "parallelism": 2} | spec}


@pytest.mark.parametrize(("parallelism", "scaled_to"), [(2, None), (1, 1), (0, 0)])
def test_a_job_that_was_scaled_by_hand_is_held(parallelism: int, scaled_to: int | None) -> None:
    view = view_child_job(raw_child(parallelism=parallelism))
    assert (view.scaled_to, view.held) == (scaled_to, scaled_to is not None)


def test_it_says_who_holds_it_and_what_to_do() -> None:
    held = child(suspended=True, scaled_to=0, holder="kubectl-edit")
    decision = decide(seen(job(status(Phase.Pending)), children=(held,)), later(7200))
    told = find(decision.status, "Queued")
    assert (decision.status.phase, decision.delete) == (Phase.Queued, ())
    assert told is not None
    assert "0 of 2 pods" in told.message
    assert "kubectl-edit set: set spec.parallelism to 2" in told.message


def test_the_time_to_start_begins_when_it_is_let_go() -> None:
    admitted = decide(seen(job(status(Phase.Queued)), children=(child(),)), later(7200)).status
    assert admitted.phase is Phase.Pending
    waiting = decide(seen(job(admitted), children=(child(),), pods=(pod(0), pod(1))), later(7260)).status
    assert (waiting.phase, waiting.attempt) == (Phase.Pending, 1)
    late = decide(seen(job(admitted), children=(child(),), pods=(pod(0), pod(1))), later(9001)).status
    assert late.attempt == 2


def unready(reason: str, uid: str = "p", index: int = 0) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "False"} | ({"reason": reason} if reason else {})
    container = {"name": "trainer", "ready": True, "state": {"running": {}}}
    raw = raw_pod(uid=uid, index=index)
    return raw | {"status": {"phase": "Running", "conditions": [ready], "containerStatuses": [container]}}


@pytest.mark.parametrize(
    ("reason", "unreachable"), [("ReadinessGatesNotReady", False), ("", True), ("ContainersNotReady", False)]
)
def test_an_unmet_readiness_gate_or_an_unready_sidecar_is_not_a_silent_node(reason: str, unreachable: bool) -> None:
    """The node controller changes the status of the condition and gives no reason; the kubelet gives one."""
    assert view_pod(unready(reason)).unreachable is unreachable


AT, AFTER = "2026-01-02T03:04:05Z", "2026-01-02T04:00:00Z"


@pytest.mark.parametrize(
    ("case", "reason", "changed", "ready", "state", "mute"),
    [
        ("it stopped answering the probe", "ContainersNotReady", AFTER, False, {"running": {"startedAt": AT}}, True),
        ("it never answered", "ContainersNotReady", AT, False, {"running": {"startedAt": AFTER}}, False),
        ("it starts", "ContainersNotReady", AT, False, {"waiting": {"reason": "ContainerCreating"}}, False),
        ("another container is not ready", "ContainersNotReady", AFTER, True, {"running": {"startedAt": AT}}, False),
        ("its node is silent", "", AFTER, True, {"running": {"startedAt": AT}}, False),
        ("it has ended", "ContainersNotReady", AFTER, False, {"terminated": {"exitCode": 1}}, False),
        ("nobody says when", "ContainersNotReady", None, False, {"running": {"startedAt": AT}}, False),
    ],
)
def test_an_agent_is_mute_where_its_kubelet_had_answers_and_has_none(
    case: str, reason: str, changed: str | None, ready: bool, state: dict[str, Any], mute: bool
) -> None:
    condition = {"type": "Ready", "status": "False", "reason": reason, "lastTransitionTime": changed}
    container = {"name": "trainer", "ready": ready, "state": state}
    raw = raw_pod() | {"status": {"phase": "Running", "conditions": [condition], "containerStatuses": [container]}}
    assert view_pod(raw).mute is mute, case


def test_sidecars_that_stop_first_do_not_hide_the_failure_of_another_pod() -> None:
    """The Job controller deletes the other pods of a failed attempt, and a sidecar may end before the trainer."""
    failed = failed_pod(0, Reason.DataUnreadable)
    ending = replace(view_pod(unready("ContainersNotReady", "p1", 1)), deleting=True, ends=later(60), node="n2")
    verdict = blame((failed, ending), child(failing=True, failed_at=NOW), now=NOW)
    assert verdict is not None
    assert (verdict.failure.reason, verdict.failure.node) == (Reason.DataUnreadable.value, failed.node or None)


def test_a_pod_with_an_unready_sidecar_is_not_ended_for_silence() -> None:
    pods = tuple(view_pod(unready("ContainersNotReady", f"p{n}", n)) for n in range(2))
    mute = seen(job(status(Phase.Running)), children=(child(),), pods=pods, heard=NOW, silence=9e9)
    after = decide(mute, later(60)).status
    assert (after.phase, after.attempt) == (Phase.Running, 1)


@pytest.mark.parametrize(
    ("reason", "then", "free"),
    [
        ("OutOfcpu", Reason.NodeRefused, True),
        ("OutOfnvidia.com/gpu", Reason.NodeRefused, True),
        ("NodeAffinity", Reason.NodeRefused, True),
        ("UnexpectedAdmissionError", Reason.PodFailed, False),
    ],
)
def test_a_pod_that_its_node_turns_away(reason: str, then: Reason, free: bool) -> None:
    away = pod(0, "Failed", reason=reason, message="Node didn't have enough resource", node="n1")
    told = evidence_of(away)
    assert told is not None
    assert (told.failure.reason, told.echo, reason in told.failure.message) == (then.value, 0, True)
    after = decide(seen(job(status(Phase.Starting)), children=(child(),), pods=(away, pod(1))), NOW).status
    assert after.restarts is not None
    assert (after.phase, after.restarts.free, after.restarts.counted) == (Phase.Restarting, int(free), int(not free))


@pytest.mark.parametrize(("after", "named"), [(29, False), (31, True), (9e5, True)])
@pytest.mark.parametrize("owner", ["", "a Job that is gone"])
def test_an_attempt_that_waits_for_pods_without_a_job_names_them(after: float, named: bool, owner: str) -> None:
    """`kubectl delete job --cascade=orphan`: nobody ends them, and they may train for days."""
    lost = failure_of(Reason.Interrupted, "the Job a-1 was deleted by a user or a controller", attempt=1, at=NOW)
    waiting = job(status(Phase.Restarting, 2, free=1, last_failure=lost))
    pods = tuple(replace(pod(index, "Running", node=f"n{index}"), controller=owner) for index in range(2))
    decision = decide(seen(waiting, pods=pods), later(after))
    assert decision.create == ()
    told = find(decision.status, "Running")
    assert (told is not None and "a-1-0-x on node n0, a-1-1-x on node n1" in told.message) is named
