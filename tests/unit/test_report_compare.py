"""What tuning changed, in words and numbers."""

from __future__ import annotations

import pytest

from finetune_api.measurements import Measurement
from finetune_trainer.cli.text import evaluation_table
from finetune_trainer.report.compare import (
    compare,
    detectable,
    difference,
    headline,
    interval,
    interval_or_why,
    number,
    sentences,
    unseen,
)
from finetune_trainer.report.forest import forest
from tests.support.small_report import MEASURED, change


def test_rows_come_in_the_order_of_their_weight() -> None:
    rows = compare((*MEASURED, change("validation", 1.0, 0.9, kind="validation", metric="loss")))
    assert [(r.name, r.kind, [c.metric for c in r.changes]) for r in rows] == [
        ("test", "test", ["accuracy", "loss"]),
        ("validation", "validation", ["loss"]),
        ("books", "slice", ["accuracy"]),
        ("dvd", "slice", ["accuracy"]),
        ("music", "slice", ["accuracy"]),
        ("general text", "general", ["bitsPerByte", "loss"]),
    ]


def test_a_slice_called_test_is_not_the_test_rows() -> None:
    rows = compare((change("test", 0.5, 0.6), change("test", 0.5, 0.7, kind="test")))
    assert [(r.name, r.kind) for r in rows] == [("test", "test"), ("test", "slice")]


def test_a_run_is_judged_by_its_test_rows_else_by_its_validation_rows() -> None:
    validation = change("validation", 1.0, 0.9, kind="validation", metric="loss")
    judged = headline(compare((validation, *MEASURED)))
    assert judged is not None
    assert judged.kind == "test"
    judged = headline(compare((validation,)))
    assert judged is not None
    assert judged.kind == "validation"
    assert headline(()) is None


def test_the_verdict_in_words_has_its_interval() -> None:
    assert sentences(compare(MEASURED)) == (
        "On the test rows the tuned model is better: accuracy 62.3 % → 88.3 % (+26.0 points [+22.0, +30.0]).",
        "Of the slices it is better on books; worse on music; inconclusive on dvd.",
        "On general text it is worse: bits per byte 0.912 → 0.924 (+0.012 [+0.007, +0.017]).",
    )


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (
            change("validation", 1.2, 0.7, "inconclusive", kind="validation", metric="loss", half=None, rows=12),
            "On the validation rows the change is inconclusive: loss 1.200 → 0.700 (−0.500).",
        ),
        (
            change("test", 0.8, 0.802, "equivalent", kind="test", half=0.006),
            "On the test rows the tuned model is equivalent to the base model: accuracy 80.0 % → 80.2 % "
            "(+0.2 points [−0.4, +0.8]).",
        ),
        (
            change("test", None, 0.802, kind="test"),
            "On the test rows the tuned model is not compared with the base model.",
        ),
    ],
)
def test_verdicts_in_words(measured: Measurement, words: str) -> None:
    assert sentences(compare((measured,))) == (words,)


def test_a_slice_that_was_not_compared_is_not_judged() -> None:
    assert sentences(compare((change("books", None, 1.0),))) == ()
    assert sentences(()) == ()


@pytest.mark.parametrize(
    ("measured", "words", "between", "smallest"),
    [
        (change("a", 0.9, 0.6), "−30.0 points", "[−34.0, −26.0]", "5.7 points"),
        (change("a", 1.0, 1.25, metric="loss", half=0.3), "+0.250", "[−0.050, +0.550]", "0.43"),
        (change("a", 1.0, 1.25, metric="loss", half=None), "+0.250", "", ""),
        (change("a", 1.0, None, metric="loss"), "", "", ""),
    ],
)
def test_differences_in_words(measured: Measurement, words: str, between: str, smallest: str) -> None:
    assert (difference(measured), interval(measured), detectable(measured)) == (words, between, smallest)


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        (change("a", 0.9, 0.6, rows=12, half=None), "too few rows (12 of 20)"),
        (change("a", 0.9, 0.6, rows=40, groups=3, half=None), "too few groups (3 of 10)"),
        (change("a", 0.9, 0.6), "[−34.0, −26.0]"),
        (change("a", 0.9, None, rows=12, half=None), ""),
    ],
)
def test_a_table_says_why_there_is_no_interval(measured: Measurement, shown: str) -> None:
    assert interval_or_why(measured) == shown
    if measured.tuned is not None:
        assert shown in evaluation_table(compare((measured,)))


def test_what_is_not_a_number_is_a_dash() -> None:
    assert number("loss", float("nan")) == number("loss", None) == "–"


def test_what_could_not_be_seen_is_said_for_every_data_set() -> None:
    few = change("rare", 0.5, 0.6, "inconclusive", half=None, rows=12)
    patients = change("ward", 0.5, 0.6, "inconclusive", rows=400, groups=31)
    told = dict(unseen(compare((*MEASURED, few, patients))))
    assert told["test"] == "400 rows: a change of accuracy below 5.7 points would mostly go unseen"
    assert told["general text"] == "400 rows: a change of bits per byte below 0.0072 would mostly go unseen"
    assert told["rare"] == "12 rows are too few for an interval: a change cannot be distinguished from chance"
    assert told["ward"].startswith("31 groups of 400 rows: ")


def test_a_forest_plot_has_a_line_for_each_data_set_of_its_metric() -> None:
    rows = compare(MEASURED)
    shown = forest("accuracy", rows, width=440)
    assert [shown.count(f'class="effect {style}"') for style in ("better", "worse", "same")] == [2, 1, 1]
    assert "books +21.5 points [+17.5, +25.5] better" in shown
    assert "better is to the right" in shown
    assert "better is to the left" in forest("bitsPerByte", rows, width=440)
    assert forest("loss", rows, width=440) == ""


def test_files_of_general_text_have_rows_of_their_own_and_the_forgotten_ones_are_named() -> None:
    rows = compare(
        (
            change("general", 0.9, 0.91, "inconclusive", kind="general", metric="bitsPerByte"),
            change("general/code", 0.9, 1.1, "worse", kind="general", metric="bitsPerByte"),
            change("general/wiki", 0.9, 0.89, "inconclusive", kind="general", metric="bitsPerByte"),
        )
    )
    assert [row.name for row in rows] == ["general text", "general text: code", "general text: wiki"]
    told = sentences(rows)
    assert len(told) == 2
    assert told[0].startswith("On general text the change is inconclusive")
    assert told[1] == "Of the files of general text it is worse on code."
