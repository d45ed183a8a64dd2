"""Evaluation records: a file holds what was written, on any number of ranks, and only equal rows are matched."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.statistics.paired import ACCURACY, BITS_PER_BYTE, LOSS
from finetune_trainer.transfer import tables
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


def rewritten(**columns: list[object]) -> bytes:
    """A file of CLASSES in which somebody has put other columns."""
    data = DataSet(name="test", kind="test", labels=("yes", "no"), models={BASE: CLASSES})
    table = parquet.read_table(pyarrow.BufferReader(encode(data)))
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pyarrow.array(values))
    return written(table)


def written(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def noted(**note: object) -> bytes:
    """A file of CLASSES with another note."""
    data = DataSet(name="test", kind="test", labels=("yes", "no"), models={BASE: CLASSES})
    table = parquet.read_table(pyarrow.BufferReader(encode(data)))
    told = json.loads(table.schema.metadata[b"finetune.dev/records"]) | note
    return written(table.replace_schema_metadata({b"finetune.dev/records": json.dumps(told)}))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (rewritten(nats=["a", "b", "c"]), "string to float"),
        (rewritten(nats=[1.0, math.nan, 1.0]), "nats has values that are not finite"),
        (rewritten(score=[1.0, math.inf, 1.0]), "score has values that are not finite"),
        (rewritten(kl=[math.nan] * 3), "kl has values that are not finite"),
        (rewritten(nats=[None] * 3), "nats has values that are not finite"),
        (rewritten(tokens=[None] * 3), "NoneType"),
        (rewritten(bytes=[1, -1, 1]), "bytes or tokens are below 0"),
        (rewritten(label=["yes", "maybe", "no"]), "a label that the data set does not have"),
        (rewritten(labelNats=[[1.0], [1.0], [1.0]]), "does not have one value for each of 2 labels"),
        (rewritten(labelNats=[[1.0, 2.0], [1.0], [1.0]]), "inhomogeneous"),
        (rewritten(model=["scale/0", "scale/x", "base"]), "string to float"),
        (rewritten(model=["scale/0", "scale/1", "base"]), "the scales were measured on different rows"),
        (noted(kind="other"), "name, kind or labels"),
        (noted(name=["test"]), "name, kind or labels"),
        (noted(labels=3), "not iterable"),
        (encode(DataSet(name="test", kind="test", models={str(n): TEXTS for n in range(33)})), "33 models"),
    ],
)  # fmt: skip
def test_columns_that_no_run_writes_are_refused(content: bytes, why: str) -> None:
    with pytest.raises(FinetuneError, match=why) as refused:
        decode(content)
    assert refused.value.reason is Reason.DataUnreadable


def test_damaged_pages_are_refused() -> None:
    content = encode(DataSet(name="test", kind="test", models={BASE: TEXTS}))
    with pytest.raises(FinetuneError) as refused:
        decode(content[:4] + b"\xff" * 40 + content[44:])
    assert refused.value.reason is Reason.DataUnreadable


def test_more_rows_or_bytes_than_the_bounds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(DataSet(name="test", kind="test", models={BASE: CLASSES}))
    monkeypatch.setattr(tables, "MOST_ROWS", 2)
    with pytest.raises(FinetuneError, match="it has 3 rows, and at most 2 are read"):
        decode(content)
    monkeypatch.undo()
    monkeypatch.setattr(tables, "MOST_BYTES", 100)
    with pytest.raises(FinetuneError, match="more than 100 bytes"):
        decode(content)


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
