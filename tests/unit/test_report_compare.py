"""What is called better, worse, or too small to see."""

from __future__ import annotations

import pytest

from finetune_api.status import Evaluation, SliceScores, Splits
from finetune_trainer.report.compare import Change, Metric, Verdict, compare, difference, headline, number, sentences
from tests.unit.report_helpers import EVALUATION, scores


@pytest.mark.parametrize(
    ("metric", "base", "tuned", "rows", "verdict"),
    [
        (Metric.accuracy, 0.6, 0.9, 400, Verdict.better),
        (Metric.accuracy, 0.9, 0.6, 400, Verdict.worse),
        (Metric.accuracy, 0.60, 0.66, 400, Verdict.same),  # 1.96 standard errors are 6.7 points here
        (Metric.accuracy, 0.60, 0.68, 400, Verdict.better),
        (Metric.accuracy, 0.60, 0.62, 40000, Verdict.better),
        (Metric.accuracy, 0.8, 1.0, 10, Verdict.same),
        (Metric.accuracy, 0.0, 1.0, 1, Verdict.same),
        (Metric.loss, 1.0, 0.9, 400, Verdict.better),
        (Metric.loss, 1.0, 1.1, 400, Verdict.worse),
        (Metric.loss, 1.0, 1.004, 400, Verdict.same),
        (Metric.loss, 0.0, 0.0, 400, Verdict.same),
        (Metric.bits_per_byte, 0.912, 0.924, 400, Verdict.worse),
        (Metric.loss, None, 0.9, 400, Verdict.unknown),
        (Metric.loss, 1.0, None, 400, Verdict.unknown),
    ],
)
def test_verdicts(metric: Metric, base: float | None, tuned: float | None, rows: int, verdict: Verdict) -> None:
    assert Change(metric, base, tuned, rows).verdict is verdict


def test_rows_come_in_the_order_of_their_weight() -> None:
    tuned = EVALUATION.tuned.model_copy(update={"validation": scores(1.0)})
    rows = compare(EVALUATION.model_copy(update={"tuned": tuned}))
    assert [(r.name, r.kind) for r in rows] == [
        ("test", "test"),
        ("validation", "validation"),
        ("books", "slice"),
        ("dvd", "slice"),
        ("music", "slice"),
        ("general text", "general"),
    ]


def test_a_run_is_judged_by_its_test_rows_else_by_its_validation_rows() -> None:
    validation = Splits(validation=scores(1.0))
    judged = headline(compare(EVALUATION))
    assert judged is not None
    assert judged.kind == "test"
    judged = headline(compare(Evaluation(base=validation, tuned=validation)))
    assert judged is not None
    assert judged.kind == "validation"
    assert headline(compare(Evaluation())) is None


def test_the_verdict_in_words() -> None:
    assert sentences(compare(EVALUATION)) == (
        "On the test rows the tuned model is better: accuracy 62.3 % → 88.3 % (+26.0 points).",
        "Of the slices it is better on books; about the same on dvd; worse on music.",
        "On general text it is worse: bits per byte 0.912 → 0.924 (+0.012).",
    )


def test_a_slice_that_was_not_compared_is_not_judged() -> None:
    only_tuned = Evaluation(slices=(SliceScores(name="books", tuned=scores(1.0)),))
    assert sentences(compare(only_tuned)) == ()
    assert sentences(compare(Evaluation())) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change(Metric.accuracy, 0.9, 0.6, 1), "−30.0 points"),
        (Change(Metric.loss, 1.0, 1.25, 1), "+0.250"),
        (Change(Metric.loss, 1.0, None, 1), ""),
        (Change(Metric.loss, 1.0, float("nan"), 1), ""),
    ],
)
def test_differences_in_words(change: Change, words: str) -> None:
    assert difference(change) == words


def test_what_is_not_a_number_is_a_dash() -> None:
    assert number(Metric.loss, float("nan")) == number(Metric.loss, None) == "–"
