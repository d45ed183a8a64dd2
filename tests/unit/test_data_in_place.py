"""Rows of files that lie elsewhere: the rows of a local copy, for as few bytes as they need."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data import read
from finetune_trainer.data.load import load_datasets
from finetune_trainer.data.read import OF_ROWS, Keys, Row, iter_rows
from finetune_trainer.store import sources
from finetune_trainer.store.folder import Changed, Folder
from finetune_trainer.store.ranges import FIRST, Ranges
from finetune_trainer.store.sources import SourceFile
from tests.support.faulty_stores import MemoryFolder
from tests.support.tokenizers import tokenizer_folder

ROWS = 4000
KEYS = ("text", "label")


@dataclass
class Remote:
    """A file elsewhere, and what was read of it; `fails` is raised once so many bytes were."""

    name: str
    content: bytes
    fails: FinetuneError | None = None
    after: int = 0
    sizes: list[int] = field(default_factory=list)

    @property
    def file(self) -> SourceFile:
        return SourceFile(f"s3://corp/{self.name}", "1", lambda: Ranges("s3://corp/a", len(self.content), self.fetch))

    def fetch(self, start: int, stop: int) -> bytes:
        if self.fails and sum(self.sizes) >= self.after:
            raise self.fails
        self.sizes.append(stop - start)
        return self.content[start:stop]


def rows_of(file: SourceFile, keys: Keys) -> tuple[list[Row], str]:
    found: list[Row] = []
    rows = iter_rows(file, keys)
    while True:
        try:
            found.append(next(rows))
        except StopIteration as end:
            return found, str(end.value)


def table() -> pa.Table:
    chosen = random.Random(1)
    return pa.table(
        {
            "text": [f"row {number} " + "word " * 10 for number in range(ROWS)],
            "picture": [chosen.randbytes(2000) for _ in range(ROWS)],
            "label": [("no", "yes")[number % 2] for number in range(ROWS)],
        }
    )


def as_parquet(rows: pa.Table) -> bytes:
    file = io.BytesIO()
    parquet.write_table(rows, file, row_group_size=1000)
    return file.getvalue()


def as_arrow(rows: pa.Table, start: Callable[..., Any]) -> bytes:
    file = io.BytesIO()
    with start(file, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1000)
    return file.getvalue()


def as_lines(rows: pa.Table) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows.drop_columns(["picture"]).to_pylist())


FILES: dict[str, Callable[[pa.Table], bytes]] = {
    "a.parquet": as_parquet,
    "a.arrow": lambda rows: as_arrow(rows, ipc.new_file),
    "stream.arrow": lambda rows: as_arrow(rows, ipc.new_stream),
    "a.jsonl": as_lines,
    "a.jsonl.gz": lambda rows: gzip.compress(as_lines(rows), 1),
    "a.jsonl.zst": lambda rows: pa.compress(as_lines(rows), codec="zstd", asbytes=True),
}
IN_PART = ("a.parquet", "a.arrow")


@pytest.fixture(scope="module")
def contents() -> Mapping[str, bytes]:
    rows = table()
    return {name: form(rows) for name, form in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_of_a_local_copy_and_the_digest_is_of_what_was_read(
    name: str, contents: Mapping[str, bytes], tmp_path: Path
) -> None:
    remote = Remote(name, contents[name])
    (tmp_path / name).write_bytes(remote.content)
    rows, digest = rows_of(remote.file, KEYS)
    here, _ = rows_of(SourceFile(remote.file.uri, "", tmp_path / name), KEYS)
    assert rows == here
    assert len(rows) == ROWS
    assert rows[1].fields == {"text": "row 1 " + "word " * 10, "label": "yes"}
    if name in IN_PART:
        lines = b"".join(json.dumps(row.fields, sort_keys=True).encode() + b"\n" for row in rows)
        assert digest == OF_ROWS + hashlib.sha256(lines).hexdigest()
        assert sum(remote.sizes) < len(remote.content) / 5, "the pictures are not read"
    else:
        assert digest == hashlib.sha256(remote.content).hexdigest()


def test_a_look_at_the_first_row_reads_little(contents: Mapping[str, bytes]) -> None:
    for name in ("a.parquet", "a.arrow", "a.jsonl"):
        remote = Remote(name, contents[name])
        rows = iter_rows(remote.file, KEYS)
        assert next(rows).fields["label"] == "no"
        rows.close()
        assert sum(remote.sizes) <= 1 << 18


def test_a_group_of_rows_that_is_larger_than_memory_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_COLUMN", 1 << 18)
    file = io.BytesIO()
    parquet.write_table(
        table(), file, row_group_size=ROWS, data_page_size=1 << 16, use_dictionary=False, write_batch_size=16
    )
    remote = Remote("a.parquet", file.getvalue())
    rows, _ = rows_of(remote.file, ("picture",))
    assert len(rows) == ROWS
    assert sum(remote.sizes) > 7 << 20
    assert max(remote.sizes) < 1 << 20, "a part, or a page that is larger"


@pytest.mark.parametrize("name", IN_PART)
def test_rows_without_the_columns_are_rows_all_the_same(name: str, contents: Mapping[str, bytes]) -> None:
    rows, _ = rows_of(Remote(name, contents[name]).file, ("messages",))
    assert [row.fields for row in rows] == [{}] * ROWS


@pytest.mark.parametrize("fails", [Changed("s3://corp/a"), FinetuneError(Reason.StorageUnavailable, "it is away")])
@pytest.mark.parametrize("name", FILES)
def test_a_store_that_fails_in_the_middle_is_heard(
    name: str, fails: FinetuneError, contents: Mapping[str, bytes]
) -> None:
    for after in (0, *([100] if len(contents[name]) > FIRST else [])):
        with pytest.raises(FinetuneError) as caught:
            rows_of(Remote(name, contents[name], fails, after).file, KEYS)
        assert caught.value.reason is fails.reason
        assert caught.value.message == fails.message


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name: str, contents: Mapping[str, bytes]) -> None:
    with pytest.raises(FinetuneError) as caught:
        rows_of(Remote(name, contents[name][:-1000] + (b"" if "jsonl" not in name else b'\n{"text": ')).file, KEYS)
    assert caught.value.reason is Reason.DataUnreadable
    assert f"s3://corp/{name}" in caught.value.message


def test_a_job_is_the_same_from_a_bucket_and_leaves_nothing_of_it_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer_folder(tmp_path / "model")
    bucket = MemoryFolder({name: FILES[name](table().slice(0, 200)) for name in ("a.parquet", "a.jsonl")}, "s3://corp")
    really = sources.open_folder

    def open_folder(uri: str, *, prefix: str, environ: Mapping[str, str]) -> Folder:
        return bucket if uri.startswith("s3://") else really(uri, prefix=prefix, environ=environ)

    monkeypatch.setattr(sources, "open_folder", open_folder)

    def load(uri: str) -> Any:
        spec = Data.model_validate({"train": ({"uri": uri},), "sequenceLength": 512})
        return load_datasets(spec, tokenizer_path=tmp_path / "model", cache=tmp_path / "cache", seed=1)

    (tmp_path / "a.parquet").write_bytes(bucket.files["a.parquet"])
    here = load(f"file://{tmp_path}/a.parquet")
    for name in ("a.parquet", "a.jsonl"):
        there = load(f"s3://corp/{name}")
        assert there.statistics.splits == here.statistics.splits
        assert there.train.tokens.tolist() == here.train.tokens.tolist(), "the same rows are held out"
        assert there.digests[f"s3://corp/{name}"].startswith(OF_ROWS) == name.endswith(".parquet")
    bucket.files["other.parquet"] = as_parquet(pa.table({"question": ["a"], "answer": ["b"]}))
    with pytest.raises(FinetuneError, match="row 1: keys answer, question fit no format"):
        load("s3://corp/other.parquet")
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.suffix in (".parquet", ".jsonl", ".partial")]
    assert left == []
