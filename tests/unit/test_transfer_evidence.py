"""From rows that two models were measured on to differences with intervals, and the records that they come from."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from finetune_api.guards import Forgetting, Guards
from finetune_api.measurements import Scores
from finetune_api.reasons import Reason
from finetune_trainer.data.corpus import Choices, Corpus, Marks, corpus_of
from finetune_trainer.statistics.paired import difference
from finetune_trainer.transfer import kept
from finetune_trainer.transfer.by_source import with_sources
from finetune_trainer.transfer.evaluate import Measured, scores_of
from finetune_trainer.transfer.evidence import (
    Evidence,
    evidence_of,
    kind_of,
    main_metrics,
    measurements,
    of_difference,
    subjects,
)
from finetune_trainer.transfer.records import decode, encode, matched, measures, paired
from finetune_trainer.transfer.release import judge

LABELS = ("no", "yes")


def texts(rows: int, *, groups: int | None = None) -> Corpus:
    """Rows of ten tokens and twenty bytes."""
    marks = Marks(np.arange(rows).astype(np.uint64) + 1, (np.arange(rows) % (groups or rows)).astype(np.uint64))
    flags = np.arange(11) > 0
    return corpus_of([np.ones(11, np.int32)] * rows, [flags] * rows, [20] * rows, marks=marks)


def classified(rows: int) -> Corpus:
    answers = tuple(np.array([label, 9], np.int32) for label in (5, 6))
    gold = (np.arange(rows) % 2).astype(np.int32)
    tokens = [np.concatenate([[1, 2], answers[g]]).astype(np.int32) for g in gold]
    choices = Choices(answers, np.full(rows, 2, np.int32), gold)
    plain = texts(rows)
    return corpus_of(tokens, [np.arange(4) > 1] * rows, [3] * rows, choices=choices, marks=plain.marks)


def measured(corpus: Corpus, nats: float, *, seed: int = 0, right: float | None = None) -> Measured:
    """`nats` a row, and a little chance; of classifications the share of rows that are right."""
    dice = np.random.default_rng(seed)
    each = nats + dice.normal(0, 0.2, len(corpus))
    labels = None
    if corpus.choices is not None and right is not None:
        wrong = dice.permutation(len(corpus)) >= round(right * len(corpus))
        labels = np.full((len(corpus), 2), nats + 2.0)
        labels[np.arange(len(corpus)), np.where(wrong, 1 - corpus.choices.gold, corpus.choices.gold)] = nats
        each = labels[np.arange(len(corpus)), corpus.choices.gold]
    return Measured(scores_of(corpus, each, labels), each, corpus.targets, labels)


def test_each_data_set_has_its_metrics_the_main_one_first() -> None:
    corpora = {"validation": classified(40), "test": classified(60), "general": texts(50), "slice/books": texts(30)}
    base = {name: measured(corpus, 20.0, right=0.5) for name, corpus in corpora.items()}
    tuned = {name: measured(corpus, 15.0, seed=1, right=0.9) for name, corpus in corpora.items()}
    found = measurements(subjects(corpora, base, tuned), LABELS)
    metrics: dict[tuple[str, str], list[str]] = {}
    for each in found:
        metrics.setdefault((each.kind, each.name), []).append(each.metric)
    assert list(metrics.items()) == [
        (("test", "test"), ["accuracy", "loss", "bitsPerByte"]),
        (("validation", "validation"), ["accuracy", "loss", "bitsPerByte"]),
        (("general", "general"), ["bitsPerByte", "loss"]),
        (("slice", "books"), ["loss", "bitsPerByte"]),
    ]
    assert [each.metric for each in main_metrics(found)] == ["accuracy", "accuracy", "bitsPerByte", "loss"]
    test = main_metrics(found)[0]
    assert (test.base, test.tuned, test.verdict, test.rows, test.groups) == (0.5, 0.9, "better", 60, 60)
    assert test.low is not None
    assert test.high is not None
    assert 0.2 < test.low < 0.4 < test.high < 0.6


def test_calibration_is_that_of_the_test_rows_and_its_temperature_fits_the_validation_rows() -> None:
    """A model that gives e² times more to one of two labels has a confidence of .881; where it is right in 90 of 100
    rows, 2 / ln 9 is the temperature that fits."""
    corpora = {"validation": classified(40), "test": classified(200), "general": texts(50)}
    base = {name: measured(corpus, 20.0, right=0.5) for name, corpus in corpora.items()}
    tuned = {name: measured(corpus, 20.0, seed=1, right=0.9) for name, corpus in corpora.items()}
    given = subjects(corpora, base, tuned)
    found = evidence_of(given, LABELS)
    told = found.evaluation().calibration
    assert told is not None
    assert found.calibrated is not None
    assert (told.name, told.rows, told.verdict) == ("test", 200, "better")
    assert told.base.error == pytest.approx(0.881 - 0.5, abs=1e-3)
    assert told.tuned.error == pytest.approx(0.9 - 0.881, abs=1e-3)
    assert told.temperature == pytest.approx(2 / np.log(9), abs=1e-3)
    assert [round(point.accuracy, 3) for point in found.calibrated.tuned] == [0.9]
    without = {name: corpus for name, corpus in corpora.items() if name == "general"}
    assert evidence_of(subjects(without, base, tuned), ()).evaluation().calibration is None
    assert evidence_of(subjects(corpora, base, {}), LABELS).evaluation().calibration is None


def test_numbers_are_those_of_the_scores_and_come_again_from_the_records() -> None:
    corpus = classified(60)
    before, after = measured(corpus, 20.0, right=0.5), measured(corpus, 20.0, seed=1, right=0.8)
    [subject] = subjects({"slice/books": corpus}, {"slice/books": before}, {"slice/books": after})
    found = measurements((subject,), LABELS)
    scores = after.scores
    assert [each.tuned for each in found] == pytest.approx([scores.accuracy, scores.loss, scores.bits_per_byte])
    data = decode(encode(subject.data_set(LABELS)))
    assert subject.data_set(LABELS).path == "evaluation/slice/books.parquet"
    assert (data.name, data.kind, data.labels) == ("books", "slice", LABELS)
    first, second = matched(data.models["base"], data.models["tuned"])
    again = tuple(
        of_difference(difference(paired(first, second, measure)), data.name, data.kind)
        for measure in measures(first, second, kind=data.kind)
    )
    assert again == found
    assert second.label is not None
    assert set(second.label.tolist()) == set(LABELS)


def test_intervals_of_slices_are_adjusted_for_their_number() -> None:
    corpus = texts(50)
    widths = []
    for count in (1, 8):
        corpora = {f"slice/{n}": corpus for n in range(count)}
        base, tuned = (dict.fromkeys(corpora, measured(corpus, 20.0, seed=seed)) for seed in (0, 1))
        first = measurements(subjects(corpora, base, tuned))[0]
        assert first.low is not None
        assert first.high is not None
        widths.append(first.high - first.low)
    assert widths[1] > 1.3 * widths[0]


def test_held_out_rows_of_a_named_source_are_a_slice_of_what_both_models_were_measured_on() -> None:
    corpus = classified(60)
    before, after = measured(corpus, 2.0, right=0.5), measured(corpus, 1.0, seed=1, right=0.9)
    [whole] = subjects({"validation": corpus}, {"validation": before}, {"validation": after})
    whole = dataclasses.replace(whole, apart=np.zeros(60))
    origins = {n + 1: "tickets" if n < 20 else "summaries" for n in range(45)}
    _, tickets, summaries = with_sources((whole,), origins)
    assert [(each.kind, each.name, len(each.corpus)) for each in (tickets, summaries)] == [
        ("slice", "tickets", 20), ("slice", "summaries", 25),
    ]  # fmt: skip
    for part, rows in ((tickets, slice(0, 20)), (summaries, slice(20, 45))):
        assert isinstance(part.base, Measured)
        assert part.tuned is not None
        assert len(part.data_set(LABELS).models["tuned"]) == len(part.corpus)
        assert part.base.nats.tolist() == before.nats[rows].tolist()
        assert part.tuned.scores == scores_of(part.corpus, after.nats[rows], after.labels[rows])  # type: ignore[index]
        assert part.tuned.scores.bits_per_byte is not None
    found = evidence_of((whole, tickets, summaries), LABELS)
    assert {each.name for each in found.evaluation().data if each.kind == "slice"} == {"tickets", "summaries"}
    assert with_sources((whole,), {}) == (whole,)
    assert with_sources((whole,), {10_000: "others"}) == (whole,), "none of its rows were drawn"
    older = dataclasses.replace(whole, base=Scores(loss=1.0))
    assert with_sources((older,), origins) == (older,)


def test_a_source_of_a_classifier_is_measured_by_row_and_not_by_text() -> None:
    """As `linear_probe` measures: nats of the right label, one for each row."""
    corpus = classified(40)
    labels = np.random.default_rng(1).random((40, 2))
    nats = labels[np.arange(40), corpus.choices.gold]  # type: ignore[union-attr]
    scores = scores_of(corpus, nats, labels).model_copy(
        update={"loss": float(nats.mean()), "bits_per_byte": None, "tokens": 40}
    )
    fitted = Measured(scores, nats, np.ones(40, np.int64), labels)
    [whole] = subjects({"validation": corpus}, {"validation": fitted}, {"validation": fitted})
    _, part = with_sources((whole,), {n + 1: "tickets" for n in range(25)})
    assert part.scores.loss == pytest.approx(nats[:25].mean())
    assert part.metrics == whole.metrics == ("accuracy", "loss")


def test_rows_of_one_document_count_once() -> None:
    few = {"general": texts(100, groups=9)}
    base, tuned = ({"general": measured(few["general"], nats)} for nats in (20.0, 30.0))
    found = measurements(subjects(few, base, tuned))[0]
    assert (found.rows, found.groups, found.verdict, found.low) == (100, 9, "inconclusive", None)


def test_a_run_that_an_older_version_began_has_no_rows_of_the_base_model() -> None:
    corpora = {"test": texts(50)}
    base = {"test": Scores(loss=2.0, bits_per_byte=1.5, rows=50, tokens=500)}
    found = measurements(subjects(corpora, base, {"test": measured(corpora["test"], 15.0)}))
    assert [(each.metric, each.base, each.low, each.verdict) for each in found] == [
        ("loss", 2.0, None, "inconclusive"),
        ("bitsPerByte", 1.5, None, "inconclusive"),
    ]
    assert found[0].difference == pytest.approx(-0.5, abs=0.02)
    before = measurements(subjects(corpora, base, {}))
    assert [(each.base, each.tuned, each.verdict) for each in before] == [(2.0, None, None), (1.5, None, None)]


def test_the_base_models_rows_survive_a_restart() -> None:
    corpora = {"test": classified(40), "general": texts(30)}
    base = {name: measured(corpus, 20.0, right=0.5) for name, corpus in corpora.items()}
    found = kept.of_json(json.loads(json.dumps(kept.to_json(base, corpora))), corpora)
    for name, each in base.items():
        assert found[name].scores == each.scores
        np.testing.assert_array_equal(found[name].nats, each.nats)
        np.testing.assert_array_equal(found[name].tokens, each.tokens)
    np.testing.assert_array_equal(found["test"].labels, base["test"].labels)
    assert found["general"].labels is None
    assert kept.of_json(None, corpora) == {}
    assert "test" not in kept.of_json(kept.to_json(base, corpora), {"test": classified(41)})


def test_the_base_models_rows_are_not_taken_for_as_many_others() -> None:
    corpora = {"test": classified(40)}
    told = kept.to_json({"test": measured(corpora["test"], 20.0, right=0.5)}, corpora)
    assert kept.of_json(told, corpora)
    assert not kept.of_json(told, {"test": corpora["test"].take(np.arange(40)[::-1])})


def test_a_window_without_text_leaves_the_others_their_bits_per_byte() -> None:
    """The last window of a long document can be its end token alone: trained, and zero bytes."""
    corpus = texts(400)
    corpus.bytes[7] = 0
    corpora = {"general": corpus}
    base, tuned = ({"general": measured(corpus, nats)} for nats in (20.0, 36.0))
    found = Evidence(measurements(subjects(corpora, base, tuned))).evaluation()
    assert found.data[0].metric == "bitsPerByte"
    release = judge(Guards(forgetting=Forgetting(max_bits_per_byte_increase=0.05)), found)
    assert release.refused is Reason.GuardViolated


@pytest.mark.parametrize(
    ("name", "kind"), [("test", "test"), ("general", "general"), ("slice/test", "slice"), ("slice/a", "slice")]
)
def test_data_sets_go_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind
