"""Negative transfer: slices on which the base model or an earlier artifact is better than the tuned model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune_api.evaluation import Reference
from finetune_api.failures import FinetuneError, Reason
from finetune_api.plan import JobIdentity
from finetune_trainer.data.corpus import Corpus, Marks, corpus_of
from finetune_trainer.statistics.paired import Paired
from finetune_trainer.statistics.transfer import negative_transfer
from finetune_trainer.store.artifact import commit_artifact
from finetune_trainer.store.opening import open_folder
from finetune_trainer.transfer.evaluate import Measured, scores_of
from finetune_trainer.transfer.evidence import evidence_of, subjects
from finetune_trainer.transfer.records import BASE, TUNED, DataSet, Records, common, encode, of_rows
from finetune_trainer.transfer.references import against, flagged, references_of

SLICES = ("books", "films", "music", "tools")
WIDTH = 6


def scored(right: np.ndarray, *, start: int = 0) -> Records:
    rows = [f"{start + number:016x}" for number in range(len(right))]
    ones = np.ones(len(right))
    return of_rows(row=rows, nats=ones, sizes=ones, tokens=ones, score=right, label=["yes"] * len(right))


def simulated(seed: int, *, flipped: bool) -> set[str]:
    """Linear classifiers of rows in four domains, fitted by least squares: the base model, an earlier artifact with
    twice its rows, and the tuned model with three times as many; of one domain these are labelled the wrong way
    round. Returns the domains that are flagged."""
    dice = np.random.default_rng(seed)
    weights = dice.normal(size=WIDTH)

    def rows(each: int, *, turned: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(features by domain, labels of ±1 of which a tenth is wrong, domain)"""
        domain = np.arange(len(SLICES)).repeat(each)
        plain = dice.normal(size=(len(domain), WIDTH))
        labels = np.sign(plain @ weights) * np.where(dice.random(len(domain)) < 0.1, -1, 1)
        labels[domain == 0] *= -1 if turned else 1
        return np.concatenate([plain * (domain == d)[:, None] for d in range(len(SLICES))], axis=1), labels, domain

    def fitted(*parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        features, labels = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
        return np.linalg.lstsq(features, labels, rcond=None)[0]

    first, second = rows(60), rows(60)
    models = {BASE: fitted(first), "earlier": fitted(first, second), TUNED: fitted(second, rows(120, turned=flipped))}
    features, labels, domain = rows(200)
    right = {name: (np.sign(features @ model) == labels).astype(float) for name, model in models.items()}
    pairs = {
        (slice_, reference): Paired.scores(base=right[reference][domain == d], tuned=right[TUNED][domain == d])
        for d, slice_ in enumerate(SLICES)
        for reference in (BASE, "earlier")
    }
    return {each.slice for each in negative_transfer(pairs) if each.flagged}


def test_a_slice_whose_training_labels_were_flipped_is_flagged_in_95_of_100_seeds_and_a_clean_one_in_at_most_10() -> (
    None
):
    turned = [simulated(seed, flipped=True) for seed in range(100)]
    assert sum("books" in found for found in turned) >= 95
    assert sum(found > {"books"} for found in turned) <= 10
    assert sum(bool(simulated(seed, flipped=False)) for seed in range(100)) <= 10


def test_the_best_of_those_that_are_better_is_named() -> None:
    right = {share: (np.arange(400) < share * 400).astype(float) for share in (0.5, 0.7, 0.8)}
    books = DataSet(name="books", kind="slice", models={BASE: scored(right[0.7]), TUNED: scored(right[0.5])})
    films = DataSet(name="films", kind="slice", models={BASE: scored(right[0.5]), TUNED: scored(right[0.7])})
    found = against([books, films], {"cheap": {"books": scored(right[0.8])}, "other": {"films": scored(right[0.7])}})
    compared = [(each.slice, each.reference, each.flagged) for each in found]
    assert compared == [("books", "base", True), ("books", "cheap", True), ("films", "base", False),
                        ("films", "other", False)]  # fmt: skip
    [only] = flagged(found)
    assert (only.slice, only.reference, only.difference) == ("books", "cheap", pytest.approx(-0.3))
    assert only.told() == "negative transfer on slice books: cheap is better (difference -0.3)"


def test_a_regression_within_the_practical_margin_is_none() -> None:
    """Less than a point of 40,000 rows is beyond chance, and does not matter."""
    rows = 40_000
    better, worse = ((np.arange(rows) < share * rows).astype(float) for share in (0.7, 0.692))
    [found] = against([DataSet(name="books", kind="slice", models={BASE: scored(better), TUNED: scored(worse)})], {})
    assert found.difference.high is not None
    assert found.difference.high < 0
    assert not found.flagged


def test_rows_are_matched_by_digest_and_as_often_as_both_have_them() -> None:
    first = of_rows(row=["b", "a", "a", "c"], nats=[4, 1, 2, 9], sizes=[1] * 4, tokens=[1] * 4, group=["x"] * 4)
    second = of_rows(row=["a", "d", "b"], nats=[5, 6, 7], sizes=[1] * 3, tokens=[1] * 3, group=["p", "q", "r"])
    one, other = common(first, second)
    assert (one.row.tolist(), one.nats.tolist(), other.nats.tolist()) == (["a", "b"], [1, 4], [5, 7])
    assert one.group.tolist() == other.group.tolist() == ["p", "r"]


def test_half_of_a_slice_is_compared_with_the_rows_of_an_earlier_artifact_that_are_there() -> None:
    right = np.ones(400)
    half = DataSet(name="books", kind="slice", models={BASE: scored(right[200:], start=200),
                                                       TUNED: scored(0 * right[200:], start=200)})  # fmt: skip
    found = against([half], {"cheap": {"books": scored(right)}})
    assert [each.difference.rows for each in found] == [200, 200]


def corpus(rows: int, *, start: int = 0) -> Corpus:
    marks = Marks(*(np.arange(start, start + rows).astype(np.uint64) for _ in range(2)))
    return corpus_of([np.ones(3, np.int32)] * rows, [np.arange(3) > 0] * rows, [4] * rows, marks=marks)


def committed(folder: Path, *slices: str) -> Reference:
    sets = [DataSet(name=name, kind="slice", models={TUNED: scored(np.ones(30))}) for name in slices]
    commit_artifact(
        open_folder(folder.as_uri(), prefix=""),
        {each.path: encode(each) for each in sets},
        run=JobIdentity(name=folder.name, namespace="default", uid=folder.name),
        kind="adapter",
        overwrite=False,
    )
    return Reference(name=folder.name, uri=folder.as_uri())


def test_an_earlier_artifact_is_read_from_where_it_is(tmp_path: Path) -> None:
    cheap = committed(tmp_path / "cheap", "books", "films")
    found = references_of([cheap], {"books": corpus(30), "music": corpus(30)})
    assert {name: sorted(each) for name, each in found.items()} == {"cheap": ["books"]}
    assert references_of([], {"books": corpus(30)}) == {}


def test_one_that_cannot_be_compared_is_refused_before_the_first_step(tmp_path: Path) -> None:
    cheap, gone = committed(tmp_path / "cheap", "books"), Reference(name="gone", uri=(tmp_path / "gone").as_uri())

    def refused(reference: Reference, slices: dict[str, Corpus]) -> FinetuneError:
        with pytest.raises(FinetuneError) as caught:
            references_of([reference], slices)
        assert reference.uri in caught.value.message
        assert caught.value.hint
        return caught.value

    assert refused(gone, {"books": corpus(30)}).reason is Reason.DataNotFound
    other_slices = refused(cheap, {"music": corpus(30)})
    assert (other_slices.reason, "its slices: books" in other_slices.message) == (Reason.DataNotFound, True)
    other_rows = refused(cheap, {"books": corpus(20, start=100)})
    assert other_rows.reason is Reason.DataChanged
    assert "measured 30 rows of slice books, and none of the 20" in other_rows.message


def test_status_names_the_slices_that_lost_against_the_base_model_and_against_others() -> None:
    corpora = {"slice/books": corpus(60), "slice/films": corpus(60)}

    def at(nats: float, seed: int) -> Measured:
        each = nats + np.random.default_rng(seed).normal(0, 0.1, 60)
        return Measured(scores_of(corpora["slice/books"], each, None), each, corpora["slice/books"].targets)

    base = {"slice/books": at(4, 1), "slice/films": at(4, 2)}
    tuned = {"slice/books": at(5, 3), "slice/films": at(3, 4)}
    given = subjects(corpora, base, tuned)
    plain = evidence_of(given, ()).evaluation()
    assert [(each.slice, each.reference) for each in plain.negative_transfer] == [("books", "base")]
    cheap = {"films": given[1].measured_as(at(2, 5)).data_set(()).models[TUNED]}
    found = evidence_of(given, (), references={"cheap": cheap}).evaluation()
    told = [(each.slice, each.reference) for each in found.negative_transfer]
    assert told == [("books", "base"), ("films", "cheap")]
    assert found.data == plain.data
