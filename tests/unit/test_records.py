"""Evaluation records: a file holds what was written, on any number of ranks, and only equal rows are matched."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.statistics.paired import ACCURACY, BITS_PER_BYTE, LOSS
from finetune_trainer.transfer.records import (
    BASE,
    TUNED,
    DataSet,
    Overlap,
    Records,
    decode,
    encode,
    matched,
    measures,
    of_rows,
    overlap,
    paired,
    scaled,
)

CLASSES = of_rows(
    row=["b2", "a1", "c3"],
    group=["book 1", "book 1", "book 2"],
    nats=[1.5, 0.25, 3.0],
    sizes=[12, 30, 7],
    tokens=[3, 8, 2],
    score=[1, 0, 1],
    label=["yes", "no", "yes"],
    prediction=["yes", "yes", "yes"],
    label_nats=np.array([[1.5, 2.0], [0.5, 0.25], [3.0, 9.0]]),
)
TEXTS = of_rows(row=["b2", "a1"], nats=[4.0, 2.0], sizes=[10, 20], tokens=[3, 5])


def same(first: Records, second: Records) -> bool:
    return all(np.array_equal(first.__dict__[name], second.__dict__[name]) for name in first.__dict__)


def test_what_is_written_is_read_again() -> None:
    data = DataSet(name="books", kind="slice", labels=("yes", "no"), models={BASE: CLASSES, scaled(0.5): CLASSES})
    assert data.path == "evaluation/slice/books.parquet"
    again = decode(encode(data))
    assert (again.name, again.kind, again.labels, sorted(again.models)) == (
        "books",
        "slice",
        ("yes", "no"),
        ["base", "scale/0.5"],
    )
    assert same(again.models[BASE], CLASSES.sorted())
    texts = decode(encode(DataSet(name="general", kind="general", models={BASE: TEXTS}))).models[BASE]
    assert same(texts, TEXTS.sorted())


def test_the_file_does_not_depend_on_the_order_of_rows() -> None:
    turned = CLASSES.take(np.array([2, 0, 1]))
    files = {encode(DataSet(name="test", kind="test", models={TUNED: each})) for each in (CLASSES, turned)}
    assert len(files) == 1


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"{}"])
def test_what_is_not_a_file_of_records_is_refused(content: bytes) -> None:
    with pytest.raises(FinetuneError) as refused:
        decode(content, where="evaluation/test.parquet")
    assert refused.value.reason is Reason.DataUnreadable
    assert "evaluation/test.parquet" in refused.value.message


def test_only_the_same_rows_are_matched() -> None:
    assert overlap(CLASSES, TEXTS) == Overlap(first=3, second=2, common=2)
    with pytest.raises(ValueError, match="different rows"):
        matched(CLASSES, TEXTS)
    first, second = matched(CLASSES, CLASSES.take(np.array([1, 2, 0])))
    assert first.row.tolist() == second.row.tolist() == ["a1", "b2", "c3"]


def test_a_row_that_occurs_twice_needs_a_partner_twice() -> None:
    twice = TEXTS.take(np.array([0, 0, 1]))
    assert not overlap(twice, TEXTS.take(np.array([0, 1, 1]))).same
    assert overlap(twice, twice).same


def test_the_main_measure_comes_first() -> None:
    assert measures(CLASSES, CLASSES, kind="test") == (ACCURACY, LOSS, BITS_PER_BYTE)
    assert measures(TEXTS, TEXTS, kind="validation") == (LOSS, BITS_PER_BYTE)
    assert measures(TEXTS, TEXTS, kind="general") == (BITS_PER_BYTE, LOSS)


def test_groups_of_the_records_are_those_of_the_comparison() -> None:
    assert paired(CLASSES, CLASSES, ACCURACY).group_count == 2
    assert paired(TEXTS, TEXTS, LOSS).group_count == 2


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens has 1 values for 2 rows"):
        of_rows(row=["a", "b"], nats=[1, 2], sizes=[1, 2], tokens=[1])
