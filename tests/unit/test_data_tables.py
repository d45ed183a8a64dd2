"""Parquet and Arrow files: the same rows as in JSON, and complaints that name file and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data import read
from finetune_trainer.data.load import load_datasets
from finetune_trainer.data.read import Row, iter_rows
from finetune_trainer.store.sources import SourceFile
from tests.support.tokenizers import tokenizer_folder, write_jsonl

CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": r, "content": c, "name": None} for r, c in (("user", f"say {n}"), ("assistant", f"{n}"))]}
    for n in range(7)
]


def read_rows(path: Path, name: str = "") -> list[Row]:
    return list(iter_rows(SourceFile(name or str(path), "", path)))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=3)
    elif path.suffix == ".feather":
        feather.write_feather(table, path)
    else:
        with ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("ending", read.TABLES)
def test_a_table_holds_the_rows_of_its_json(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_AT_ONCE", 2)
    path = write(tmp_path / f"a{ending}", CHATS)
    rows = read_rows(path)
    assert [row.fields["messages"][1]["content"] for row in rows] == [str(n) for n in range(7)]
    assert [row.line for row in rows] == list(range(1, 8))
    tokenizer_folder(tmp_path / "model")
    one, other = (
        load_datasets(
            Data.model_validate({"train": ({"uri": uri},)}),
            tokenizer_path=tmp_path / "model",
            cache=tmp_path / "cache",
            seed=1,
        )
        for uri in (f"file://{path}", write_jsonl(tmp_path / "a.jsonl", *CHATS))
    )
    assert one.statistics.splits == other.statistics.splits
    assert sorted(one.train.tokens.tolist()) == sorted(other.train.tokens.tolist())


def test_a_null_is_a_key_that_is_not_there(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.parquet", [{"text": "a", "label": None}, {"text": None, "label": 1}]))
    assert [row.fields for row in rows] == [{"text": "a"}, {"label": 1}]


def test_a_table_gives_no_arguments_that_other_rows_have(tmp_path: Path) -> None:
    """A column of objects has every key of every row: a model would learn to call tools with nulls."""
    calls: list[dict[str, Any]] = [
        {"name": "find", "arguments": {"city": "Rome"}},
        {"name": "add", "arguments": {"x": [1]}},
    ]
    rows = [{"messages": [{"role": "assistant", "tool_calls": [{"function": call}]}]} for call in calls]
    read = read_rows(write(tmp_path / "a.parquet", rows))
    assert [row.fields for row in read] == rows


def test_complaints_name_file_and_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c"}])
    tokenizer_folder(tmp_path / "model")
    with pytest.raises(FinetuneError) as caught:
        load_datasets(
            Data.model_validate({"train": ({"uri": f"file://{path}"},)}),
            tokenizer_path=tmp_path / "model",
            cache=tmp_path / "cache",
            seed=1,
        )
    assert caught.value.reason is Reason.LabelsMissing
    assert caught.value.message == f"file://{path} row 3: the row has no label"


@pytest.mark.parametrize("ending", read.TABLES)
@pytest.mark.parametrize("harm", ["cut", "something else", "empty"])
def test_damaged_files_are_named(tmp_path: Path, ending: str, harm: str) -> None:
    path = write(tmp_path / f"a{ending}", CHATS)
    path.write_bytes({"cut": path.read_bytes()[:-100], "something else": b'{"text": "a"}\n' * 9, "empty": b""}[harm])
    with pytest.raises(FinetuneError) as caught:
        read_rows(path, f"s3://corp/a{ending}")
    assert caught.value.reason is Reason.DataUnreadable
    assert caught.value.message.startswith(f"s3://corp/a{ending} row ")


def test_a_table_without_rows_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(FinetuneError) as caught:
        read_rows(path)
    assert caught.value.reason is Reason.DataEmpty


def test_a_missing_table_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError) as caught:
        read_rows(tmp_path / "a.parquet")
    assert caught.value.reason is Reason.DataNotFound
