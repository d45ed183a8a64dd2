"""From a manifest's guards and what was measured to whether the artifact may be published."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.calibration import Calibration, CalibrationScores
from finetune_api.guards import Guards
from finetune_api.measurements import Evaluation, GuardResult, Measurement
from finetune_api.reasons import Reason
from finetune_trainer.transfer import release
from finetune_trainer.transfer.release import Release, sentence
from tests.support.small_report import change


def guards(**given: Any) -> Guards:
    return Guards.model_validate(given, strict=False)


def judge(written: Guards, data: tuple[Measurement, ...]) -> Release:
    return release.judge(written, Evaluation(data=data))


def general(delta: float, half: float | None) -> Measurement:
    return change("general", 1.0, 1.0 + delta, kind="general", metric="bitsPerByte", half=half)


@pytest.mark.parametrize(
    ("delta", "half", "verdict"),
    [
        (0.02, 0.02, "passed"),
        (0.03, 0.02, "passed"),  # the bound itself is kept
        (0.04, 0.02, "inconclusive"),
        (0.06, 0.02, "inconclusive"),
        (0.08, 0.02, "violated"),
        (-0.5, 0.2, "passed"),
        (0.5, None, "inconclusive"),
    ],
)
def test_general_text_may_cost_so_much_more(delta: float, half: float | None, verdict: str) -> None:
    outcome = judge(guards(forgetting={"maxBitsPerByteIncrease": 0.05}), (general(delta, half),))
    [found] = outcome.results
    assert (found.name, found.bound, found.verdict) == ("forgetting", 0.05, verdict)
    assert found.value == (None if half is None else pytest.approx(delta))


@pytest.mark.parametrize(
    ("measured", "verdict", "value"),
    [
        (change("test", 0.5, 0.6, kind="test", half=0.05), "passed", 0.1),
        (change("test", 0.5, 0.53, kind="test", half=0.05), "inconclusive", 0.03),
        (change("test", 0.5, 0.4, kind="test", half=0.05), "violated", -0.1),
        (change("test", 2.0, 1.5, kind="test", metric="loss", half=0.1), "passed", 0.5),
        (change("test", 2.0, 2.5, kind="test", metric="loss", half=0.1), "violated", -0.5),
    ],
)
def test_the_least_gain_is_in_the_direction_that_is_better(measured: Measurement, verdict: str, value: float) -> None:
    [found] = judge(guards(minGain=0.0), (measured,)).results
    assert (found.verdict, found.value) == (verdict, pytest.approx(value))
    assert found.low is not None
    assert found.high is not None
    assert found.low < value < found.high


def test_the_gain_is_that_of_the_test_rows_if_there_are_any() -> None:
    validation = change("validation", 0.5, 0.9, kind="validation")
    test = change("test", 0.9, 0.5, kind="test")
    assert judge(guards(minGain=0), (validation, test)).results[0].verdict == "violated"
    assert judge(guards(minGain=0), (validation,)).results[0].verdict == "passed"


@pytest.mark.parametrize(
    ("changes", "verdict", "named"),
    [
        ((0.1, 0.0, -0.005), "passed", "2"),
        ((0.1, -0.06, -0.3), "violated", "2"),
        ((-0.3, -0.06, -0.4), "violated", "2"),
        ((0.1, -0.06, 0.0), "inconclusive", "1"),
    ],
)
def test_the_worst_slice_decides_and_is_named(changes: tuple[float, ...], verdict: str, named: str) -> None:
    slices = tuple(change(str(n), 0.5, 0.5 + delta, half=0.02) for n, delta in enumerate(changes))
    outcome = judge(guards(slices={"maxRegression": 0.05}), slices)
    assert outcome.results[0].verdict == verdict
    assert sentence(outcome.judgements[0]).endswith(f"({named})")


def test_rows_that_would_decide_are_said_and_do_decide() -> None:
    """Twice as far from the bound as half the interval is wide takes four times the rows."""
    [found] = judge(guards(forgetting={"maxBitsPerByteIncrease": 0.05}), (general(0.03, 0.04),)).results
    assert found.rows_needed == 1600
    shrunk = general(0.03, 0.04 * (400 / 1600) ** 0.5 - 1e-9)
    assert judge(guards(forgetting={"maxBitsPerByteIncrease": 0.05}), (shrunk,)).results[0].verdict == "passed"
    [on_the_bound] = judge(guards(forgetting={"maxBitsPerByteIncrease": 0.0}), (general(0.0, 0.04),)).results
    assert on_the_bound.rows_needed is None


def test_a_guard_whose_rows_were_not_measured_is_not_passed() -> None:
    wanted = guards(minGain=0, forgetting={}, slices={})
    assert [(each.name, each.verdict, each.value) for each in judge(wanted, ()).results] == [
        ("minGain", "inconclusive", None),
        ("forgetting", "inconclusive", None),
        ("slices", "inconclusive", None),
    ]


def test_guards_that_are_not_written_do_not_run() -> None:
    assert judge(guards(), (general(1.0, 0.01),)) == Release()


@pytest.mark.parametrize(
    ("delta", "settings", "reason"),
    [
        (0.5, {}, Reason.GuardViolated),
        (0.5, {"onViolation": "warn"}, None),
        (0.05, {}, None),
        (0.05, {"onInconclusive": "fail"}, Reason.GuardInconclusive),
        (0.05, {"onInconclusive": "fail", "onViolation": "warn"}, Reason.GuardInconclusive),
        (0.0, {"onInconclusive": "fail"}, None),
    ],
)
def test_what_keeps_an_artifact_back(delta: float, settings: dict[str, str], reason: Reason | None) -> None:
    outcome = judge(guards(forgetting={"maxBitsPerByteIncrease": 0.05}, **settings), (general(delta, 0.02),))
    assert outcome.refused is reason
    assert bool(outcome.refusal) == (reason is not None)


def test_a_refusal_says_value_interval_bound_and_rows() -> None:
    outcome = judge(guards(forgetting={}, minGain=0.0, onInconclusive="fail"), (
        general(0.21, 0.03), change("test", 0.5, 0.51, kind="test"),
    ))  # fmt: skip
    assert outcome.refusal == ("guards.forgetting is violated: +0.21 [+0.18, +0.24], at most 0.05 is allowed (general)")
    assert list(outcome.sentences())[1] == (
        "guards.minGain is inconclusive: +0.01 [-0.03, +0.05], at least 0 is required; "
        "about 6,400 rows would decide (test)"
    )
    assert GuardResult(name="slices", bound=0.1, verdict="inconclusive").told() == (
        "slices is inconclusive: not measured, at most 0.1 is allowed"
    )


def calibration(low: float | None, high: float | None) -> Evaluation:
    scores = CalibrationScores(error=0.1, floor=0.02, brier=0.4, nll=0.6)
    value = None if low is None or high is None else (low + high) / 2
    return Evaluation(
        calibration=Calibration(name="test", base=scores, tuned=scores, difference=value, low=low, high=high, rows=400)
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.01, 0.03, "passed"), (0.0, 0.1, "inconclusive"), (0.05, 0.1, "violated"), (None, None, "inconclusive")],
)
def test_the_calibration_error_may_rise_so_much(low: float | None, high: float | None, verdict: str) -> None:
    outcome = release.judge(guards(calibration={}), calibration(low, high))
    [found] = outcome.results
    assert (found.name, found.bound, found.verdict) == ("calibration", 0.03, verdict)
    assert release.judge(guards(calibration={}), Evaluation()).results[0].verdict == "inconclusive"


def test_a_violation_that_no_scale_remedies_keeps_the_artifact_back() -> None:
    outcome = judge(guards(forgetting={}, onViolation="remedy"), (general(0.5, 0.02),))
    assert outcome.violated
    assert outcome.refused is Reason.GuardViolated
