"""Each policy by its table: given what is seen, then this is decided."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import LastWords, Reason
from finetune_api.plan import ProgressReport, RunPlan
from finetune_api.status import (
    Artifact,
    Evaluation,
    FailureClass,
    FineTuneJobStatus,
    LastFailure,
    Phase,
    Progress,
    ResolvedPlan,
    Restarts,
    Scores,
    SliceScores,
    Splits,
)
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from finetune_operator.observe import Observed
from finetune_operator.resources import JOBS
from finetune_operator.status import find, is_true, rfc3339
from tests.unit.operator_world import (
    NOW,
    child,
    ended,
    failed_pod,
    job,
    later,
    pod,
    seen,
    spec,
    status,
    suspended,
    words,
)

ARTIFACT = Artifact(uri="s3://corp/out", digest="sha256:1", size_bytes=1, kind="adapter")
RUNNING = (pod(0, "Running"), pod(1, "Running"))
FAILED = (pod(0, "Failed"), pod(1, "Failed"))


def made(decision: Decision) -> list[str]:
    return [create.body["metadata"]["name"] for create in decision.create]


def gone(decision: Decision) -> list[str]:
    return [each.name for each in decision.delete]


def outcome(given: Observed, at: float = 0) -> tuple[str | None, int | None, list[str], list[str]]:
    decision = decide(given, later(at))
    return (
        decision.status.phase and decision.status.phase.value,
        decision.status.attempt,
        made(decision),
        gone(decision),
    )


STORY: list[tuple[str, Observed, tuple[str | None, int | None, list[str], list[str]]]] = [
    ("a new job: its first attempt is numbered and made",
     seen(job()), ("Pending", 1, ["a", "a-1"], [])),
    ("numbered, but the operator died before it made the Job",
     seen(job(status(Phase.Pending))), ("Pending", 1, ["a", "a-1"], [])),
    ("made, no pods yet",
     seen(job(status(Phase.Pending)), children=(child(),)), ("Pending", 1, [], [])),
    ("one of two runs",
     seen(job(status(Phase.Pending)), children=(child(),), pods=(pod(0, "Running"), pod(1))), ("Pending", 1, [], [])),
    ("all run",
     seen(job(status(Phase.Pending)), children=(child(),), pods=RUNNING), ("Running", 1, [], [])),
    ("one has finished, the other runs on",
     seen(job(status(Phase.Running)), children=(child(),), pods=(pod(0, "Running"), pod(1, "Succeeded"))),
     ("Running", 1, [], [])),
    ("all succeeded",
     seen(job(status(Phase.Running)), children=(child(),), pods=(pod(0, "Succeeded"), pod(1, "Succeeded"))),
     ("Succeeded", 1, [], [])),
    ("the Job says complete, its pods are gone already",
     seen(job(status(Phase.Running)), children=(child(complete=True, finished=True),)), ("Succeeded", 1, [], [])),
    ("one failed: the next number, and the old Job goes",
     seen(job(status(Phase.Running)), children=(child(),), pods=(failed_pod(1, Reason.UnexpectedError), RUNNING[0])),
     ("Restarting", 2, [], ["a-1"])),
    ("the old gang still ends",
     seen(job(status(Phase.Restarting, 2)), children=(child(deleting=True),), pods=(pod(0, "Running"),)),
     ("Restarting", 2, [], [])),
    ("the old gang has ended, its Job is on its way out",
     seen(job(status(Phase.Restarting, 2)), children=(child(deleting=True),), pods=FAILED),
     ("Restarting", 2, ["a", "a-2"], [])),
    ("the old Job is gone",
     seen(job(status(Phase.Restarting, 2))), ("Restarting", 2, ["a", "a-2"], [])),
    ("the old Job is gone, but one of its pods is not",
     seen(job(status(Phase.Restarting, 2)), pods=(pod(1, "Running"),)), ("Restarting", 2, [], [])),
    ("the operator died before it deleted the old Job",
     seen(job(status(Phase.Restarting, 2)), children=(child(),), pods=RUNNING), ("Restarting", 2, [], ["a-1"])),
    ("the new gang runs",
     seen(job(status(Phase.Restarting, 2)), children=(child(2),), pods=(pod(0, "Running", 2), pod(1, "Running", 2))),
     ("Running", 2, [], [])),
    ("no restart can help",
     seen(job(status(Phase.Pending)), children=(child(),), pods=(failed_pod(0, Reason.DataEmpty), pod(1))),
     ("Failed", 1, [], [])),
    ("the budget is spent",
     seen(job(status(Phase.Running, 4, counted=3)), children=(child(4),),
          pods=(failed_pod(0, Reason.UnexpectedError, attempt=4),)),
     ("Failed", 4, [], [])),
    ("preemption costs nothing",
     seen(job(status(Phase.Running, 4, counted=3)), children=(child(4),),
          pods=(pod(0, "Failed", 4, disruption="PreemptionByScheduler", disrupted=NOW),)),
     ("Restarting", 5, [], ["a-4"])),
    ("somebody deleted the Job",
     seen(job(status(Phase.Running))), ("Restarting", 2, [], [])),
    ("somebody is deleting the Job",
     seen(job(status(Phase.Running)), children=(child(deleting=True),), pods=RUNNING), ("Restarting", 2, [], [])),
    ("to be suspended",
     seen(suspended(job(status(Phase.Running))), children=(child(),), pods=RUNNING), ("Suspended", 1, [], ["a-1"])),
    ("suspended, the Job is still there: the operator died before it deleted it",
     seen(suspended(job(status(Phase.Suspended))), children=(child(),), pods=RUNNING), ("Suspended", 1, [], ["a-1"])),
    ("suspended, and its pods say that they were interrupted",
     seen(suspended(job(status(Phase.Suspended))), children=(child(deleting=True),),
          pods=(failed_pod(0, Reason.Interrupted),)),
     ("Suspended", 1, [], [])),
    ("suspended before it began",
     seen(suspended(job())), ("Suspended", None, [], [])),
    ("resumed, while the old pods still checkpoint",
     seen(job(status(Phase.Suspended)), children=(child(deleting=True),), pods=RUNNING), ("Pending", 2, [], [])),
    ("resumed, all is quiet",
     seen(job(status(Phase.Suspended))), ("Pending", 2, ["a", "a-2"], [])),
    ("succeeded just before it was suspended",
     seen(suspended(job(status(Phase.Running))), children=(child(complete=True, finished=True),)),
     ("Succeeded", 1, [], [])),
    ("ended, and its children were deleted",
     seen(job(status(Phase.Succeeded))), ("Succeeded", 1, [], [])),
    ("ended, and suspended afterwards",
     seen(suspended(job(status(Phase.Failed))), children=(child(finished=True),)), ("Failed", 1, [], [])),
    ("the spec cannot be read",
     seen(job(status(Phase.Pending)), children=(child(),), spec=None, problem="spec.nodes: must be a number"),
     ("Failed", 1, [], ["a-1"])),
    ("being deleted: what it owns goes with it",
     seen(job(status(Phase.Running), deleting=True)), ("Running", 1, [], [])),
    ("its status was lost, its Job was not",
     seen(job(), children=(child(3),), pods=(pod(0, "Running", 3), pod(1, "Running", 3))), ("Pending", 3, [], [])),
]  # fmt: skip


@pytest.mark.parametrize(("given", "then"), [t[1:] for t in STORY], ids=[t[0] for t in STORY])
def test_the_story(given: Observed, then: tuple[Any, ...]) -> None:
    assert outcome(given) == then


@pytest.mark.parametrize("given", [t[1] for t in STORY], ids=[t[0] for t in STORY])
def test_a_status_once_written_is_not_written_again(given: Observed) -> None:
    """The same view with the status that was decided: nothing more to write, but maybe a later look."""
    first = decide(given, NOW)
    again = Observed(**{**vars(given), "job": job(first.status, **_as_it_was(given))})
    second = decide(again, NOW)
    if second.status.attempt == first.status.attempt and second.status.phase == first.status.phase:
        assert second.status == first.status


def _as_it_was(given: Observed) -> dict[str, Any]:
    return {"raw_spec": given.job.raw_spec, "deleting": given.job.deleting}


def test_a_first_gang_is_made_without_asking_who_else_runs_and_a_second_is_not() -> None:
    assert decide(seen(job()), NOW).alone is False
    assert decide(seen(job(status(Phase.Restarting, 2))), NOW).alone is True


def test_restarts_pause_longer_each_time() -> None:
    def wait(restarts: int) -> float | None:
        failure = LastFailure(
            failure_class=FailureClass.Internal, reason="UnexpectedError", time=rfc3339(NOW), attempt=restarts
        )
        given = seen(job(status(Phase.Restarting, restarts + 1, counted=restarts, last_failure=failure)))
        return decide(given, NOW).look_again_in

    assert [wait(n) for n in (1, 2, 3, 4, 20)] == [None, 10, 20, 40, 300]


def test_memory_that_ran_out_halves_the_micro_batch_of_what_follows() -> None:
    """From the last words of whoever knows; the next Job's plan has it, and so do those after it."""
    told = words(Reason.OutOfMemory, rank=1).model_copy(
        update={"plan": ResolvedPlan(micro_batch_tokens=1000, longest_row=100)}
    )
    pods = (pod(0, "Running"), pod(1, "Failed", ended=ended(80, words=told)))
    after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods), NOW).status
    assert (after.attempt, after.micro_batch_tokens, after.restarts) == (2, 500, Restarts(out_of_memory=1))
    restarting = find(after, "Running")
    assert restarting is not None
    assert "micro-batches of 500 tokens instead of 1000" in restarting.message
    for later_on in (after, after.model_copy(update={"attempt": 3})):
        made_job = next(c.body for c in decide(seen(job(later_on)), later(100)).create if c.resource is JOBS)
        plan = made_job["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN]
        assert RunPlan.model_validate_json(plan).micro_batch_tokens == 500


def test_a_loss_that_is_not_finite_is_tried_once_more() -> None:
    def end(before: FineTuneJobStatus) -> FineTuneJobStatus:
        attempt = before.attempt or 1
        pods = (failed_pod(0, Reason.LossNonFinite, attempt=attempt),)
        return decide(seen(job(before), children=(child(attempt),), pods=pods), NOW).status

    again = end(status(Phase.Running))
    assert (again.phase, again.restarts) == (Phase.Restarting, Restarts(non_finite=1))
    over = end(again.model_copy(update={"phase": Phase.Running}))
    failed = find(over, "Failed")
    assert failed is not None
    assert (over.phase, failed.reason) == (Phase.Failed, "LossNonFinite")


@pytest.mark.parametrize(("asked", "skipped"), [(False, None), (True, 41)])
def test_the_batch_of_a_loss_that_is_not_finite_is_left_out_if_asked(asked: bool, skipped: int | None) -> None:
    told = words(Reason.LossNonFinite, rank=1).model_copy(update={"step": 41})
    pods = (pod(0, "Running"), pod(1, "Failed", ended=ended(81, words=told)))
    wanted = spec(training={"skip_bad_batch": asked})
    after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods, spec=wanted), NOW).status
    assert after.skipped_step == skipped
    next_one = decide(seen(job(after), spec=wanted), later(100))
    plan = next(c.body for c in next_one.create if c.resource is JOBS)["spec"]["template"]["metadata"]["annotations"]
    assert RunPlan.model_validate_json(plan[names.ANNOTATION_PLAN]).skipped_step == skipped


def test_pods_that_do_not_end_are_named_when_they_should_have_ended() -> None:
    failure = LastFailure(failure_class=FailureClass.Infrastructure, reason="NodeLost", time=rfc3339(NOW))
    before = status(Phase.Restarting, 2, counted=1, last_failure=failure)
    stuck = pod(1, "Running", node="gpu-7", deleting=True, ends=later(120))
    given = seen(job(before), children=(child(deleting=True),), pods=(stuck,))
    assert find(decide(given, later(179)).status, "Running") is None
    told = find(decide(given, later(180)).status, "Running")
    assert told is not None
    assert (told.reason, "a-1-1-x on node gpu-7" in told.message) == ("Restarting", True)
    assert made(decide(given, later(9999))) == [], "two attempts never run at once"


def test_exhausted_restarts_tell_the_last_failure() -> None:
    given = seen(job(status(Phase.Running, 2)), children=(child(2),), spec=spec(retry={"max_restarts": 0}),
                 pods=(failed_pod(1, Reason.UnexpectedError, attempt=2),))  # fmt: skip
    failed = find(decide(given, NOW).status, "Failed")
    assert failed is not None
    assert failed.reason == "RestartsExhausted"
    assert "it broke" in failed.message
    assert "report it" in failed.message


def test_conditions_of_a_life() -> None:
    start = decide(seen(job()), NOW).status
    assert (find(start, "Running").reason, is_true(start, "Running")) == ("GangCreated", False)  # type: ignore[union-attr]
    up = decide(seen(job(start), children=(child(),), pods=RUNNING), later(5)).status
    assert is_true(up, "Running")
    over = decide(seen(suspended(job(up)), children=(child(),), pods=RUNNING), later(9)).status
    assert (is_true(over, "Suspended"), is_true(over, "Running"), over.start_time) == (True, False, None)
    resumed = decide(seen(job(over, generation=3)), later(12)).status
    again = find(resumed, "Suspended")
    assert again is not None
    assert (again.status, again.reason, again.observed_generation) == ("False", "Resumed", 3)
    assert resumed.start_time == rfc3339(later(12))


def test_a_transition_time_moves_only_when_the_condition_flips() -> None:
    start = decide(seen(job()), NOW).status
    failed = decide(
        seen(job(start), children=(child(),), pods=(failed_pod(0, Reason.UnexpectedError),)), later(60)
    ).status
    before, after = find(start, "Running"), find(failed, "Running")
    assert before is not None
    assert after is not None
    assert (after.reason, after.last_transition_time) == ("Restarting", before.last_transition_time)


def test_pods_that_have_nodes_for_a_moment_are_starting() -> None:
    pods = (pod(0, scheduled=NOW), pod(1, scheduled=NOW))
    given = seen(job(status(Phase.Pending)), children=(child(),), pods=pods)
    soon = decide(given, later(1))
    assert (soon.status.phase, soon.look_again_in) == (Phase.Pending, 4)
    assert decide(given, later(5)).status.phase is Phase.Starting


def report(step: int, **fields: Any) -> ProgressReport:
    return ProgressReport(attempt=1, phase="training", progress=Progress(step=step, total_steps=10, **fields))


def progressed(given: FineTuneJobStatus, told: ProgressReport, at: float) -> Decision:
    return decide(seen(job(given), children=(child(),), pods=RUNNING, report=told), later(at))


def test_progress_is_written_when_it_moved_and_not_too_often() -> None:
    running = decide(seen(job(status(Phase.Pending)), children=(child(),), pods=RUNNING), NOW).status
    first = progressed(running, report(1, loss=2.0), 0).status
    assert first.progress is not None
    assert (first.progress.step, first.progress.last_update_time) == (1, rfc3339(NOW))
    assert progressed(first, report(1, loss=2.0, tokens_per_second=9.0), 60).status == first
    early = progressed(first, report(2), 5)
    assert (early.status, early.look_again_in) == (first, 10)
    later_on = progressed(first, report(2), 15).status.progress
    assert later_on is not None
    assert later_on.step == 2


def test_a_loss_that_is_no_number_does_not_reach_the_status() -> None:
    running = decide(seen(job(status(Phase.Pending)), children=(child(),), pods=RUNNING), NOW).status
    progress = progressed(running, report(1, loss=float("nan")), 0).status.progress
    assert progress is not None
    assert progress.loss is None


def scores(loss: float) -> Evaluation:
    slices = (SliceScores(name="s", tuned=Scores(loss=loss)),)
    return Evaluation(tuned=Splits(test=Scores(loss=loss)), slices=slices)


def test_what_the_last_words_lack_comes_from_the_last_report() -> None:
    """A long message is cut: its slices go first."""
    last = LastWords(step=9, artifact=ARTIFACT, evaluation=scores(1.0).model_copy(update={"slices": ()}))
    pods = (pod(0, "Succeeded", ended=ended(words=last)), pod(1, "Succeeded"))
    told = ProgressReport(attempt=1, phase="done", progress=Progress(step=8, total_steps=10), evaluation=scores(1.0))
    after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods, report=told), NOW).status
    assert after.artifact == ARTIFACT
    assert after.evaluation == scores(1.0)
    assert after.progress is not None
    assert (after.progress.step, after.progress.percent) == (9, 100)


def test_a_complete_job_waits_for_the_news_of_its_first_pod() -> None:
    given = seen(job(status(Phase.Running)), children=(child(complete=True, finished=True),), pods=RUNNING)
    decision = decide(given, NOW)
    assert decision.status.phase is Phase.Running
    assert decision.look_again_in


def test_suspension_is_not_a_failure_and_resuming_is_free() -> None:
    view = job(status(Phase.Suspended, 2, counted=1))
    given = seen(view, children=(child(2, deleting=True),), pods=(failed_pod(0, Reason.Interrupted, attempt=2),))
    after = decide(given, NOW).status
    assert after.restarts is not None
    assert (after.attempt, after.restarts.counted, after.restarts.free, after.last_failure) == (3, 1, 1, None)


def test_an_invalid_spec_says_what_to_correct() -> None:
    after = decide(seen(job(), spec=None, problem="spec.nodes: must be at least 1, not 0"), NOW).status
    failed = find(after, "Failed")
    assert failed is not None
    assert failed.reason == "InvalidSpec"
    assert "spec.nodes" in failed.message
    assert "finetune validate" in failed.message


def test_the_latest_generation_is_acknowledged() -> None:
    assert decide(seen(job(status(Phase.Succeeded), generation=7)), NOW).status.observed_generation == 7


def test_words_of_an_earlier_attempt_do_not_count() -> None:
    old = pod(0, "Failed", 1, ended=ended(65, words=words(Reason.DataEmpty)))
    given = seen(
        job(status(Phase.Restarting, 2)), children=(child(2),), pods=(old, pod(0, "Running", 2), pod(1, "Running", 2))
    )
    assert decide(given, NOW).status.phase is Phase.Running
