"""What the status, the conditions and the metrics of a job say when its guards were judged."""

from __future__ import annotations

import re

import pytest
from prometheus_client.registry import CollectorRegistry

from finetune_api.failures import Reason, TerminationMessage, class_of, exit_code_of
from finetune_api.measurements import Evaluation, GuardResult, Measurement
from finetune_api.plan import ProgressReport
from finetune_api.status import Artifact, Candidate, FailureClass, FineTuneJobStatus, Phase
from finetune_api.verdicts import GuardVerdict
from finetune_operator.decide import decide
from finetune_operator.kube.resources import FINETUNEJOBS
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters, State
from finetune_operator.state.cache import Cache
from finetune_operator.state.status import find
from tests.support.exported_series import Ages
from tests.support.operator_objects import NOW, SPEC, child, ended, job, pod, raw_job, seen, spec, status

ARTIFACT = Artifact(uri="s3://corp/out", digest="0" * 64, size_bytes=1, kind="adapter")
CANDIDATE = Candidate(uri="s3://corp/out/.finetune/u/candidate", digest="1" * 64)


def evaluation(*verdicts: GuardVerdict) -> Evaluation:
    names = ("minGain", "forgetting", "slices")
    return Evaluation(
        data=(Measurement(name="test", kind="test", metric="loss", base=2.0, tuned=1.0),),
        guards=tuple(
            GuardResult(name=name, bound=0.05, value=0.2, low=0.1, high=0.3, verdict=verdict)
            for name, verdict in zip(names, verdicts, strict=False)
        ),
    )


def succeeded(found: Evaluation) -> FineTuneJobStatus:
    words = TerminationMessage(reason=Reason.Succeeded, artifact=ARTIFACT, evaluation=found)
    pods = (pod(0, "Succeeded", ended=ended(words=words)), pod(1, "Succeeded"))
    return decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods), NOW).status


def held_back(words: TerminationMessage | None, report: ProgressReport | None = None) -> FineTuneJobStatus:
    code = exit_code_of(Reason.GuardViolated)
    pods = (pod(0, "Failed", ended=ended(code, words=words)), pod(1, "Succeeded", ended=ended()))
    made = child(failing=True, finished=True)
    return decide(seen(job(status(Phase.Running)), children=(made,), pods=pods, report=report), NOW).status


def refusal(candidate: Candidate | None = CANDIDATE) -> TerminationMessage:
    reason = Reason.GuardViolated
    return TerminationMessage(
        failure_class=class_of(reason), reason=reason, message="guards.forgetting is violated", exit_code=84,
        evaluation=evaluation("passed", "violated"), candidate=candidate,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "word", "reason", "told"),
    [
        (("passed", "passed"), "True", Reason.GuardsPassed, "minGain is passed: forgetting is passed:"),
        (("passed", "inconclusive"), "Unknown", Reason.GuardInconclusive, "forgetting is inconclusive:"),
        (("inconclusive", "violated"), "False", Reason.GuardViolated, "forgetting is violated:"),
    ],
)
def test_the_condition_says_what_the_worst_guard_came_to(
    verdicts: tuple[GuardVerdict, ...], word: str, reason: Reason, told: str
) -> None:
    after = succeeded(evaluation(*verdicts))
    found = find(after, "GuardsPassed")
    assert found is not None
    assert (after.phase, found.status, found.reason) == (Phase.Succeeded, word, reason)
    assert " ".join(re.findall(r"\w+ is \w+:", found.message)) == told


def test_what_the_last_of_several_runs_measured_counts_also_where_it_is_told_in_short() -> None:
    """The status has all data sets of the first run, which violated a guard; the operator did not hear the second."""
    passed = evaluation("passed", "passed")
    told = passed.model_copy(update={"data": (), "omitted": 1})
    words = TerminationMessage(reason=Reason.Succeeded, artifact=ARTIFACT, evaluation=told)
    pods = (pod(0, "Succeeded", ended=ended(words=words)), pod(1, "Succeeded"))
    for known, expected in ((evaluation("passed", "violated"), told), (passed, passed)):
        running = status(Phase.Running).model_copy(update={"evaluation": known})
        after = decide(seen(job(running), children=(child(),), pods=pods), NOW).status
        found = find(after, "GuardsPassed")
        assert found is not None
        assert (found.status, after.evaluation) == ("True", expected)


def test_a_guard_of_which_nothing_is_reported_is_inconclusive_and_said_so() -> None:
    """A trainer image that is older than the operator does not know guards, and publishes."""
    words = TerminationMessage(reason=Reason.Succeeded, artifact=ARTIFACT)
    pods = (pod(0, "Succeeded", ended=ended(words=words)), pod(1, "Succeeded"))
    asked = spec(guards={"min_gain": 0.01, "forgetting": {}})
    after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods, spec=asked), NOW).status
    found = find(after, "GuardsPassed")
    assert found is not None
    assert (after.phase, found.status, found.reason) == (Phase.Succeeded, "Unknown", Reason.GuardInconclusive)
    assert found.message == (
        "minGain is inconclusive: not measured, at least 0.01 is required; "
        "forgetting is inconclusive: not measured, at most 0.05 is allowed"
    )
    assert after.evaluation is not None
    assert [each.name for each in after.evaluation.guards] == ["minGain", "forgetting"]


def test_a_job_without_guards_has_no_such_condition() -> None:
    assert find(succeeded(evaluation()), "GuardsPassed") is None


def test_a_job_that_a_guard_ended_is_not_retried_and_keeps_what_it_measured() -> None:
    after = held_back(refusal())
    assert (after.phase, after.attempt) == (Phase.Failed, 1)
    assert after.last_failure is not None
    assert (after.last_failure.failure_class, after.last_failure.reason) == (FailureClass.Guard, "GuardViolated")
    assert (after.candidate, after.artifact) == (CANDIDATE, None)
    assert after.evaluation == evaluation("passed", "violated")
    found = find(after, "GuardsPassed")
    assert found is not None
    assert found.status == "False"
    assert found.message == "forgetting is violated: +0.2 [+0.1, +0.3], at most 0.05 is allowed"
    failed = find(after, "Failed")
    assert failed is not None
    assert failed.reason == Reason.GuardViolated


def test_without_termination_message_the_last_report_has_it() -> None:
    told = ProgressReport(attempt=1, phase="done", evaluation=evaluation("violated"), candidate=CANDIDATE)
    after = held_back(None, told)
    assert after.last_failure is not None
    assert after.last_failure.failure_class is FailureClass.Guard
    assert (after.candidate, after.evaluation) == (CANDIDATE, evaluation("violated"))


def test_a_pod_that_is_gone_has_said_where_the_candidate_is() -> None:
    code = exit_code_of(Reason.GuardViolated)
    gone = (pod(0, "Failed", ended=ended(code, words=refusal())), pod(1, "Succeeded", ended=ended()))
    made = child(failing=True, finished=True)
    after = decide(seen(job(status(Phase.Running)), children=(made,), ended_pods=gone), NOW).status
    assert after.last_failure is not None
    assert after.last_failure.failure_class is FailureClass.Guard
    assert (after.candidate, after.evaluation) == (CANDIDATE, evaluation("passed", "violated"))


def test_a_candidate_elsewhere_is_not_believed() -> None:
    elsewhere = Candidate(uri="s3://others/bucket", digest="1" * 64)
    assert held_back(refusal(elsewhere)).candidate is None


@pytest.mark.parametrize(("tolerated", "states"), [("warn", 2), ("pass", 1)])
def test_metrics_have_value_bound_and_verdict_of_each_guard(tolerated: str, states: int) -> None:
    cache = Cache()
    told = {"phase": "Succeeded", "evaluation": evaluation("passed", "inconclusive").to_json()}
    guards = {"minGain": 0, "onInconclusive": tolerated}
    cache.feed(FINETUNEJOBS, None, raw_job(status=told, spec=SPEC | {"guards": guards}))
    registry: CollectorRegistry = Counters().registry
    registry.register(State(cache, WorkQueue(), Ages()))  # type: ignore[arg-type]
    labels = {"namespace": "ml", "name": "a", "guard": "forgetting"}
    assert registry.get_sample_value("finetune_job_guard_value", labels) == 0.2
    assert registry.get_sample_value("finetune_job_guard_bound", labels) == 0.05
    found = [
        registry.get_sample_value("finetune_job_guard_state", labels | {"guard": guard, "state": state})
        for guard, state in (("minGain", "passed"), ("forgetting", "inconclusive"), ("forgetting", "passed"))
    ]
    assert found == [1, 1 if states == 2 else None, None]


def test_the_guards_on_generated_text_are_one_in_the_metrics_the_worse() -> None:
    cache = Cache()
    guards = tuple(
        GuardResult(name=name, bound=bound, value=0.5, verdict=verdict)
        for name, bound, verdict in (("collapse", 0.2, "violated"), ("generation", 0.9, "passed"))
    )
    told = {"phase": "Failed", "evaluation": Evaluation(guards=guards).to_json()}
    cache.feed(FINETUNEJOBS, None, raw_job(status=told))
    registry: CollectorRegistry = Counters().registry
    registry.register(State(cache, WorkQueue(), Ages()))  # type: ignore[arg-type]
    labels = {"namespace": "ml", "name": "a", "guard": "generation"}
    assert registry.get_sample_value("finetune_job_guard_bound", labels) == 0.2
    assert registry.get_sample_value("finetune_job_guard_state", labels | {"state": "violated"}) == 1
    assert registry.get_sample_value("finetune_job_guard_bound", labels | {"guard": "collapse"}) is None
