"""Which rows are held out, and rows that are in two data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.data import TrainSource, Validation
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.read import Row
from finetune_trainer.data.split import fingerprint, hold_out, key_of
from tests.support.datasets import load, spec_of, texts
from tests.support.tokenizers import write_jsonl


def split(rows: list[Row], validation: Validation | None, *, seed: int) -> tuple[list[Row], list[Row]]:
    keys = np.array([key_of(row, validation, seed=seed) for row in rows], np.uint64)
    twins = np.array([fingerprint(row.fields["text"]) for row in rows], np.uint64)
    held = hold_out(keys, twins, validation)
    return [row for row, out in zip(rows, held, strict=True) if not out], [rows[i] for i in np.flatnonzero(held)]


def test_a_validation_file_leaves_all_rows_to_training(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *texts(10))
    dev = write_jsonl(tmp_path / "dev.jsonl", {"text": "ROW  3"}, *texts(2, start=90))
    data = load(tmp_path, spec_of(train, validation={"uri": dev}, allowDuplicates=True))
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (10, 3)
    assert data.statistics.splits["validation"].duplicates == 1


def test_one_row_trains_without_validation(tmp_path: Path) -> None:
    data = load(tmp_path, spec_of(write_jsonl(tmp_path / "train.jsonl", *texts(1))))
    assert (len(data.train), data.validation) == (1, None)


@given(
    groups=st.lists(st.integers(0, 12), min_size=2, max_size=60),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_split_never_goes_through_a_group(groups: list[int], fraction: float, seed: int, data: st.DataObject) -> None:
    rows = [Row("a.jsonl", number, {"text": f"{number}", "patient": group}) for number, group in enumerate(groups)]
    validation = Validation(fraction=fraction, group_by="patient")
    if len(set(groups)) == 1:
        with pytest.raises(FinetuneError, match="they are one group"):
            split(rows, validation, seed=seed)
        return
    train, held = split(rows, validation, seed=seed)
    assert train
    assert held
    assert sorted(row.line for row in train + held) == list(range(len(rows)))
    assert not {row.fields["patient"] for row in train} & {row.fields["patient"] for row in held}
    shuffled = data.draw(st.permutations(rows))
    assert {row.line for row in split(shuffled, validation, seed=seed)[1]} == {row.line for row in held}


def test_copies_of_a_row_stay_together() -> None:
    rows = [Row("a.jsonl", number, {"text": f"{number // 3}"}) for number in range(60)]
    train, held = split(rows, Validation(fraction=0.2), seed=3)
    assert not {row.fields["text"] for row in train} & {row.fields["text"] for row in held}
    assert len(held) == 12


@pytest.mark.parametrize(("rows", "held"), [(2, 1), (100, 5), (30_000, 500)])
def test_the_default_holds_out_a_twentieth_but_never_more_than_500(rows: int, held: int) -> None:
    made = [Row("a.jsonl", number, {"text": f"{number}"}) for number in range(rows)]
    assert len(split(made, None, seed=1)[1]) == held


def test_another_seed_holds_out_other_rows(tmp_path: Path) -> None:
    rows = [Row("a.jsonl", number, {"text": f"{number}"}) for number in range(100)]
    held = [tuple(row.line for row in split(rows, None, seed=seed)[1]) for seed in range(3)]
    assert len(set(held)) == 3


def test_rows_that_were_drawn_are_held_out_no_more_often_than_others(tmp_path: Path) -> None:
    """40 of 1000 rows are drawn, beside 360 others, and a tenth of all is held out. By one order for both, the drawn
    rows, which have the lowest numbers of their thousand, would be nearly all of the 40 that are held out."""
    large = write_jsonl(tmp_path / "large.jsonl", *texts(1000))
    small = write_jsonl(tmp_path / "small.jsonl", *texts(360, start=5000))
    sources = (TrainSource(uri=large, max_rows=40), TrainSource(uri=small))
    spec = spec_of([large, small], validation=Validation(fraction=0.1)).model_copy(update={"train": sources})
    data = load(tmp_path, spec)
    drawn, all_ = data.statistics.sources
    assert drawn.documents + all_.documents == 360
    assert drawn.documents >= 30, "4 of 40 are expected to be held out"


def test_only_rows_that_were_drawn_leak(tmp_path: Path) -> None:
    rows = texts(40)
    train, test = write_jsonl(tmp_path / "train.jsonl", *rows), write_jsonl(tmp_path / "test.jsonl", *rows[:20])
    spec = spec_of(train, test={"uri": test}, allowDuplicates=True)
    few = spec.model_copy(update={"train": (TrainSource(uri=train, max_rows=8),)})
    counts = [load(tmp_path, each).statistics.splits["test"].duplicates for each in (spec, few)]
    assert counts[0] > 8 >= counts[1]


LEAKS = ["test", "validation"]


@pytest.mark.parametrize("name", LEAKS)
def test_measured_rows_that_are_trained_on_are_refused_unless_allowed(tmp_path: Path, name: str) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *texts(20))
    measured = write_jsonl(tmp_path / "m.jsonl", *texts(3, start=90), {"text": "ROW  3"}, {"text": "row 4"})
    validation = {"validation": {"uri": write_jsonl(tmp_path / "v.jsonl", *texts(2, start=80))}}
    spec = spec_of(train, **{**validation, name: {"uri": measured}})
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, spec)
    assert caught.value.reason is Reason.DataLeak
    assert caught.value.exit_code == 65
    assert caught.value.message == (
        f"{name}: 2 of 5 rows are among the training rows too, the first is {measured} line 4"
    )
    assert "data.allowDuplicates: true" in caught.value.hint
    data = load(tmp_path, spec.model_copy(update={"allow_duplicates": True}))
    assert data.statistics.splits[name].duplicates == 2
    assert "2 also among the training rows" in data.statistics.splits[name].line()


def test_copies_in_slices_are_counted_and_not_refused(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *texts(20))
    uri = write_jsonl(tmp_path / "s.jsonl", {"text": "row 3"})
    validation = {"uri": write_jsonl(tmp_path / "v.jsonl", *texts(2, start=80))}
    data = load(tmp_path, spec_of(train, slices=({"name": "s", "uri": uri},), validation=validation))
    assert data.statistics.splits["slice:s"].duplicates == 1


def test_a_copy_is_held_out_with_its_original(tmp_path: Path) -> None:
    """Rows that differ in case or label only would make a split of its own a leak."""
    rows = [{"text": text, "label": label} for n in range(20) for text, label in ((f"row {n}", "a"), (f"ROW {n}", "b"))]
    data = load(tmp_path, spec_of(write_jsonl(tmp_path / "train.jsonl", *rows), validation={"fraction": 0.3}))
    assert data.validation is not None
    assert (len(data.validation), data.statistics.splits["validation"].duplicates) == (12, 0)


def test_copies_across_the_groups_of_a_split_are_a_leak(tmp_path: Path) -> None:
    rows = [{"text": f"row {n % 10}", "patient": n} for n in range(20)]
    spec = spec_of(write_jsonl(tmp_path / "train.jsonl", *rows), validation={"fraction": 0.3, "groupBy": "patient"})
    with pytest.raises(FinetuneError, match=r"validation: .* rows are among the training rows too"):
        load(tmp_path, spec)
