"""Every guard x what it measured x onViolation x onInconclusive: whether the artifact is published, and what the job's
condition GuardsPassed says."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from typing import get_args

import pytest

from finetune_api.failures import FailureClass, Reason, TerminationMessage, class_of, exit_code_of
from finetune_api.generated_text import Collapse, CollapseFigure, Generation, GenerationScore
from finetune_api.generation import GenerationMetric
from finetune_api.guards import Guards
from finetune_api.measurements import Evaluation
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_api.verdicts import GuardVerdict
from finetune_operator.decide import decide
from finetune_operator.state.status import find
from finetune_trainer.transfer.guards import GUARDS
from finetune_trainer.transfer.release import judge
from tests.support.operator_objects import NOW, child, ended, job, pod, seen, status
from tests.support.small_report import change
from tests.unit.test_operator_guards import ARTIFACT, CANDIDATE
from tests.unit.test_transfer_release import calibration, general

Measured = dict[GuardVerdict, Evaluation]


def by_verdict(passed: float, violated: float, inconclusive: float, of: Callable[[float], Evaluation]) -> Measured:
    return {"passed": of(passed), "violated": of(violated), "inconclusive": of(inconclusive)}


def variety(drop: float) -> Evaluation:
    low, high = drop - 0.05, drop + 0.05
    fell = CollapseFigure(name="distinct2", mode="greedy", base=1.0, tuned=1 - drop, drop=drop, low=low, high=high)
    return Evaluation(collapse=Collapse(verdict="passed", bound=0.2, rows=128, figures=(fell,)))


def share(metric: GenerationMetric) -> Callable[[float], Evaluation]:
    return lambda value: Evaluation(
        generation=Generation(name="test", rows=400, groups=400, scores=(GenerationScore(metric=metric, tuned=value),))
    )


CASES: dict[str, tuple[dict[str, object], Measured]] = {
    "minGain": (
        {"minGain": 0.05},
        by_verdict(0.2, -0.1, 0.05, lambda d: Evaluation(data=(change("test", 0.5, 0.5 + d, kind="test", half=0.02),))),
    ),
    "forgetting.maxBitsPerByteIncrease": (
        {"forgetting": {}},
        by_verdict(0.0, 0.5, 0.05, lambda d: Evaluation(data=(general(d, 0.02),))),
    ),
    "slices.maxRegression": (
        {"slices": {"maxRegression": 0.05}},
        by_verdict(0.1, -0.3, -0.05, lambda d: Evaluation(data=(change("books", 0.5, 0.5 + d, half=0.02),))),
    ),
    "calibration.maxIncrease": (
        {"calibration": {}},
        by_verdict(0.0, 0.1, 0.03, lambda d: calibration(d - 0.02, d + 0.02)),
    ),
    "collapse.maxDrop": ({"collapse": {"maxDrop": 0.2}}, by_verdict(0.0, 0.5, 0.2, variety)),
    "generation.minStops": ({"generation": {"minStops": 0.9}}, by_verdict(0.99, 0.5, 0.9, share("stops"))),
    "generation.minJsonValid": ({"generation": {"minJsonValid": 0.9}}, by_verdict(0.99, 0.5, 0.9, share("jsonValid"))),
}
CONDITION = {"passed": "True", "violated": "False", "inconclusive": "Unknown"}
SETTINGS = [Guards.model_fields[name].annotation for name in ("on_violation", "on_inconclusive")]


def held_back_by(verdict: GuardVerdict, on_violation: str, on_inconclusive: str) -> Reason | None:
    """What docs/evaluation.md says. `remedy` has found no scale that keeps the guards if one is violated now."""
    if verdict == "violated":
        return None if on_violation == "warn" else Reason.GuardViolated
    return Reason.GuardInconclusive if (verdict, on_inconclusive) == ("inconclusive", "fail") else None


def test_every_guard_has_its_rows() -> None:
    assert set(CASES) == set(GUARDS)


@pytest.mark.parametrize("verdict", get_args(GuardVerdict))
@pytest.mark.parametrize("guard", CASES)
def test_what_follows_from_a_verdict(guard: str, verdict: GuardVerdict) -> None:
    written, measured = CASES[guard]
    for on_violation, on_inconclusive in product(*map(get_args, SETTINGS)):
        settings = written | {"onViolation": on_violation, "onInconclusive": on_inconclusive}
        release = judge(Guards.model_validate_json(json.dumps(settings)), measured[verdict])
        [result] = release.results
        assert (result.name, result.verdict) == (guard.partition(".")[0], verdict)
        reason = held_back_by(verdict, on_violation, on_inconclusive)
        assert release.refused is reason, settings
        assert release.refusal.startswith(f"guards.{result.name} is {verdict}") if reason else not release.refusal

        after = ended_with(reason, measured[verdict].model_copy(update={"guards": release.results}))
        assert (after.phase, after.attempt) == (Phase.Failed if reason else Phase.Succeeded, 1), settings
        found = find(after, "GuardsPassed")
        assert found is not None
        assert found.status == CONDITION[verdict]
        assert found.message == result.told()
        if reason:
            assert after.last_failure is not None
            assert (after.last_failure.failure_class, after.last_failure.reason) == (FailureClass.Guard, reason)
            assert (after.candidate, after.artifact) == (CANDIDATE, None)
        else:
            assert (after.candidate, after.artifact) == (None, ARTIFACT)


def ended_with(reason: Reason | None, evaluation: Evaluation) -> FineTuneJobStatus:
    """The status of a job whose run ended like that, though its manifest allows restarts."""
    if reason is None:
        words = TerminationMessage(reason=Reason.Succeeded, artifact=ARTIFACT, evaluation=evaluation)
        pods = (pod(0, "Succeeded", ended=ended(words=words)), pod(1, "Succeeded"))
        return decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods), NOW).status
    assert exit_code_of(reason) == 84
    words = TerminationMessage(
        failure_class=class_of(reason), reason=reason, exit_code=84, evaluation=evaluation, candidate=CANDIDATE
    )
    pods = (pod(0, "Failed", ended=ended(84, words=words)), pod(1, "Succeeded", ended=ended()))
    made = child(failing=True, finished=True)
    return decide(seen(job(status(Phase.Running)), children=(made,), pods=pods), NOW).status
