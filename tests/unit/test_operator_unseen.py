"""What is not seen ends no attempt: watches lag, objects lose their labels, clusters clean up, clocks are wrong."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.status import Artifact, FailureClass, LastFailure, Phase, Restarts
from finetune_operator.decide import LINGER, decide
from finetune_operator.diagnosis.root_cause import blame, evidence_of
from finetune_operator.kube.resources import JOBS, PODS
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Observed, observe
from finetune_operator.state.status import rfc3339
from tests.support.operator_objects import (
    DEFAULTS,
    NOW,
    child,
    ended,
    failed_pod,
    job,
    later,
    pod,
    raw_child,
    raw_job,
    raw_pod,
    seen,
    spec,
    status,
    terminated,
    words,
)

KEY = ("ml", "a")


RUNNING = (pod(0, "Running"), pod(1, "Running"))


DONE = TerminationMessage(artifact=Artifact(uri="s3://corp/out", digest="sha256:1", size_bytes=1, kind="adapter"))


COMPLETE = child(complete=True, finished=True)


FAILING = child(failing=True, failed_at=NOW, message="BackoffLimitExceeded")


def done(index: int, **fields: Any) -> Any:
    return pod(index, "Succeeded", **{"ended": ended(words=DONE if index == 0 else None)} | fields)


def watched(now: Phase = Phase.Running, **fields: Any) -> Observed:
    view = job(status(now, start_time=rfc3339(NOW)))
    return seen(view, **{"children": (child(),), "pods": RUNNING, "confirmed": False} | fields)


UNSURE: list[tuple[str, Observed, float]] = [
    ("the Job has failed, and no pod has yet", watched(children=(FAILING,)), 61),
    ("the Job is complete, and its pods run", watched(children=(COMPLETE,)), 0),
    ("the Job is complete, and its pods are not there", watched(children=(COMPLETE,), pods=()), 0),
    ("the Job is not there", watched(children=()), 0),
    ("the Job is being deleted", watched(children=(child(deleting=True),)), 0),
    ("only an echo is heard", watched(pods=(failed_pod(0, Reason.PeerLost), RUNNING[1])), 60),
    ("one pod has failed", watched(pods=(failed_pod(0, Reason.UnexpectedError), RUNNING[1])), 0),
    ("the pods do not run in time", watched(Phase.Pending, pods=(pod(0), pod(1))), 9999),
    ("node 0 is silent", watched(heard=NOW, silence=9999, pods=(replace(RUNNING[0], unreachable=True), RUNNING[1])), 0),
    ("it takes too long", watched(spec=spec(deadlines={"active": "1m"})), 61),
    ("half of it finds no node", watched(Phase.Pending, pods=(pod(0, scheduled=NOW), pod(1)), spec=spec(
        nodes={"min": 1, "max": 2}, deadlines={"startup": "1m"})), 61),
]  # fmt: skip


@pytest.mark.parametrize(("given", "after"), [row[1:] for row in UNSURE], ids=[row[0] for row in UNSURE])
def test_the_api_server_is_asked_before_an_attempt_is_ended(given: Observed, after: float) -> None:
    first = decide(given, later(after))
    assert (first.confirm, first.status, first.delete, first.create) == (True, given.status, (), ())
    sure = decide(replace(given, confirmed=True), later(after))
    assert not sure.confirm


SURE: list[tuple[str, Observed, Phase]] = [
    ("all pods have ended, one badly", watched(pods=(failed_pod(0, Reason.PeerLost), done(1))), Phase.Restarting),
    ("all pods have succeeded", watched(pods=(done(0), done(1))), Phase.Succeeded),
    ("it runs", watched(), Phase.Running),
]


@pytest.mark.parametrize(("given", "then"), [row[1:] for row in SURE], ids=[row[0] for row in SURE])
def test_it_is_not_asked_where_all_is_seen(given: Observed, then: Phase) -> None:
    decision = decide(given, NOW)
    assert (decision.confirm, decision.status.phase) == (False, then)


def test_pods_of_a_failed_job_that_still_end_are_waited_for() -> None:
    given = watched(children=(FAILING,), confirmed=True)
    assert decide(given, later(59)).status.phase is Phase.Running
    assert decide(given, later(59)).look_again_in
    late = decide(given, later(61)).status
    assert late.last_failure is not None
    assert late.last_failure.reason == "PodLost"
    told_to_end = replace(given, pods=tuple(replace(p, deleting=True, ends=later(120)) for p in RUNNING))
    assert decide(told_to_end, later(179)).status.phase is Phase.Running
    assert decide(told_to_end, later(181)).status.phase is Phase.Restarting


def test_pods_that_no_watch_has_reported_yet_are_waited_for_before_their_end_is_called_unknown() -> None:
    """A live read no longer finds a pod that ended and was deleted, and the pods' watch lags behind it."""
    given = watched(children=(FAILING,), pods=(), confirmed=True)
    assert decide(given, later(9)).status.phase is Phase.Running
    assert decide(given, later(9)).look_again_in
    crashed = replace(given, ended_pods=(failed_pod(1, Reason.UnexpectedError),))
    assert decide(crashed, later(9)).status.restarts == Restarts(counted=1, free=0)


@pytest.mark.parametrize(("phase", "restarts"), [(Phase.Running, (0, 1)), (Phase.Starting, (1, 0))])
def test_pods_that_somebody_deleted_unseen_cost_only_an_attempt_that_never_ran(
    phase: Phase, restarts: tuple[int, int]
) -> None:
    after = decide(watched(phase, children=(FAILING,), pods=(), confirmed=True), later(11)).status
    assert after.phase is Phase.Restarting
    assert after.restarts is not None
    assert (after.restarts.counted, after.restarts.free) == restarts


def test_a_doomed_job_is_not_tried_again_because_its_pod_was_seen_late() -> None:
    given = watched(children=(FAILING,), pods=(failed_pod(0, Reason.DataEmpty), RUNNING[1]), confirmed=True)
    assert decide(given, NOW).status.phase is Phase.Failed


GONE: list[tuple[str, dict[str, Any], Phase, tuple[int, int]]] = [
    ("its Job was complete", {"ended_job": COMPLETE}, Phase.Succeeded, (0, 0)),
    ("its pods had succeeded", {"ended_pods": (done(0), done(1))}, Phase.Succeeded, (0, 0)),
    ("one of two had", {"ended_pods": (done(0),)}, Phase.Restarting, (0, 1)),
    ("one had failed", {"ended_pods": (failed_pod(1, Reason.UnexpectedError),)}, Phase.Restarting, (1, 0)),
    ("one had failed for good", {"ended_pods": (failed_pod(1, Reason.DataEmpty),)}, Phase.Failed, (0, 0)),
    ("nothing is known: it may have finished", {}, Phase.Restarting, (0, 1)),
]


@pytest.mark.parametrize(("known", "then", "restarts"), [row[1:] for row in GONE], ids=[row[0] for row in GONE])
def test_a_job_and_pods_that_are_gone(known: dict[str, Any], then: Phase, restarts: tuple[int, int]) -> None:
    after = decide(watched(children=(), pods=(), confirmed=True, **known), NOW).status
    assert after.phase is then
    assert after.restarts is not None
    assert (after.restarts.counted, after.restarts.free) == restarts


def test_a_finished_run_that_was_cleaned_up_keeps_its_artifact() -> None:
    given = watched(children=(), pods=(), confirmed=True, ended_job=COMPLETE, ended_pods=(done(0), done(1)))
    assert decide(given, NOW).status.artifact == DONE.artifact


def test_a_job_without_restarts_is_not_failed_by_somebody_who_deletes_its_job() -> None:
    given = watched(children=(), pods=(), confirmed=True, spec=spec(retry={"max_restarts": 0}))
    assert decide(given, NOW).status.phase is Phase.Restarting


def test_the_cache_remembers_how_what_is_gone_ended() -> None:
    cache = Cache()
    cache.jobs.put(raw_job(status=status(Phase.Running).to_json()))
    finished = {"conditions": [{"type": "Complete", "status": "True"}]}
    cache.feed(JOBS, "ADDED", raw_child(1))
    cache.feed(PODS, "ADDED", terminated(raw_pod(1), 0))
    cache.feed(JOBS, "DELETED", raw_child(9) | {"status": finished})
    listing = cache.listing(PODS, None)  # the pod's deletion was lost with its watch
    listing.page([], 10)
    listing.end()
    found = observe(cache, KEY, DEFAULTS)
    assert found is not None
    assert found.ended_job is not None
    assert found.ended_job.complete
    assert [each.done for each in found.gone] == [True]


SIDECARS: list[tuple[str, tuple[Any, ...], Phase]] = [
    ("they outlive it", (pod(0, "Running", ended=ended(words=DONE)), pod(1, "Running", ended=ended())),
     Phase.Succeeded),
    ("they fail after it", (pod(0, "Failed", ended=ended(words=DONE)), done(1)), Phase.Succeeded),
    ("they outlive one that failed", (pod(0, "Running", ended=failed_pod(0, Reason.DataEmpty).ended), RUNNING[1]),
     Phase.Failed),
    ("it works, they do not matter", RUNNING, Phase.Running),
]  # fmt: skip


@pytest.mark.parametrize(("pods", "then"), [row[1:] for row in SIDECARS], ids=[row[0] for row in SIDECARS])
def test_the_trainers_container_decides(pods: tuple[Any, ...], then: Phase) -> None:
    assert decide(watched(pods=pods, confirmed=True), NOW).status.phase is then


@pytest.mark.parametrize("code", [0, 65])
def test_pods_that_are_kept_by_other_containers_are_deleted_a_little_later(code: int) -> None:
    last = ended(code, words=DONE if code == 0 else words(Reason.DataEmpty))
    pods = (pod(0, "Running", ended=last), pod(1, "Running", ended=last))
    over = decide(watched(pods=pods), NOW)
    after = watched(pods=pods, children=(child(),))
    after = replace(after, job=job(over.status))
    assert decide(after, later(1)).look_again_in == pytest.approx(LINGER.total_seconds() - 1)
    assert not decide(after, later(1)).delete
    assert [each.name for each in decide(after, later(LINGER.total_seconds())).delete] == ["a-1"]


def test_a_job_with_its_logs_stays_where_its_pods_have_ended() -> None:
    over = decide(watched(pods=(done(0), done(1))), NOW)
    after = replace(watched(pods=(done(0), done(1))), job=job(over.status))
    assert not decide(after, later(9999)).delete


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=365), timedelta(hours=-5)])
def test_a_time_of_a_node_is_within_what_can_be(ahead: timedelta) -> None:
    wrong = words(Reason.UnexpectedError).model_copy(update={"time": (NOW + ahead).isoformat()})
    said = evidence_of(pod(0, "Failed", ended=ended(70, words=wrong, at=ahead.total_seconds())), later(60))
    assert said is not None
    assert NOW <= said.at <= later(60)
    assert said.failure.time == rfc3339(said.at)


def test_a_node_whose_clock_is_ahead_does_not_delay_the_next_attempt() -> None:
    wrong = words(Reason.UnexpectedError).model_copy(update={"time": later(3600).isoformat()})
    pods = tuple(pod(n, "Failed", ended=ended(70, words=wrong, at=3600)) for n in range(2))
    known = status(Phase.Running, 3, counted=2)
    pods = tuple(replace(each, attempt=3, controller="c3") for each in pods)
    after = decide(seen(job(known), children=(child(3, nodes=2),), pods=pods), later(60)).status
    waits = decide(seen(job(after)), later(60)).look_again_in
    assert waits == pytest.approx(20)


def test_an_echo_by_a_wrong_clock_is_not_waited_for_for_an_hour() -> None:
    echo = failed_pod(0, Reason.PeerLost, at=3600)
    verdict = blame([echo, RUNNING[1]], replace(FAILING, failed_at=later(1)), now=later(7))
    assert verdict is not None
    assert verdict.wait == 0


def test_a_failure_that_was_written_by_a_wrong_clock_delays_nothing() -> None:
    failure = LastFailure(
        failure_class=FailureClass.Internal, reason="UnexpectedError", time=rfc3339(later(3600)), attempt=2
    )
    given = seen(job(status(Phase.Restarting, 3, counted=2, last_failure=failure)))
    assert decide(given, NOW).create
