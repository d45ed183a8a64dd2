"""Files to rows, one at a time: a file may be larger than memory.

.jsonl              one JSON object a line
.txt                plain text, cut at blank lines into passages of about 4,000 characters: one row `{"text": …}` each
.gz                 either of them, compressed
.parquet            tables; a column is a key, lists and structs are what they are in JSON
.arrow .feather     the same from Arrow's own files and streams
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.failures import FinetuneError, Reason

PASSAGE = 4000
"""Characters: long enough to have context, short enough for a file to be split into training and validation rows."""

TABLES = (".parquet", ".arrow", ".feather")
ENDINGS = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz", *TABLES)
"""Of files that can be read."""

_AT_ONCE = 256
"""Rows of a table in memory."""


@dataclass(frozen=True)
class Row:
    file: str
    line: int
    """From 1, as editors count."""
    fields: dict[str, Any]
    unit: str = "line"
    """What `line` counts: lines of text, or rows of a table."""

    def problem(self, reason: Reason, what: str, hint: str = "") -> FinetuneError:
        """To be raised: what is wrong with this row."""
        return FinetuneError(reason, f"{self.place}: {what}", hint)

    @property
    def place(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


def iter_rows(path: Path, *, name: str | None = None) -> Iterator[Row]:
    """The rows of a file, which messages call `name`. DataNotFound, DataEmpty, DataUnreadable, while it is read."""
    name = name or str(path)
    if not path.name.endswith(ENDINGS):
        raise FinetuneError(
            Reason.DataUnreadable,
            f"{name} is none of {', '.join(ENDINGS)}",
            "Convert it: one JSON object a line.",
        )
    row = None
    for row in _rows(path, name):
        yield row
    if row is None:
        raise FinetuneError(Reason.DataEmpty, f"{name} has no rows")


def _rows(path: Path, name: str) -> Iterator[Row]:
    try:
        if path.name.endswith(TABLES):
            yield from _table(path, name)
            return
        compressed = path.name.endswith(".gz")
        with gzip.open(path) if compressed else path.open("rb") as file:
            lines = _without_mark(file)
            yield from (
                _objects(lines, name) if path.name.removesuffix(".gz").endswith(".jsonl") else _passages(lines, name)
            )
    except FileNotFoundError as error:
        raise FinetuneError(Reason.DataNotFound, f"there is no file {name}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FinetuneError(
            Reason.DataUnreadable, f"{name} is not a whole gzip file: {error}", "Compress or upload it again."
        ) from error
    except OSError as error:
        raise FinetuneError(Reason.DataUnreadable, f"{name} cannot be read: {error.strerror or error}") from error


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Without line ends, nor the byte order mark that some editors put in front."""
    for number, line in enumerate(lines):
        yield (line if number else line.removeprefix(b"\xef\xbb\xbf")).removesuffix(b"\n")


def _objects(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    for line, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        row = Row(name, line, {})
        try:
            value = json.loads(_text(raw, row))
        except ValueError as error:
            raise row.problem(Reason.DataUnreadable, f"this is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise row.problem(Reason.DataUnreadable, f"a row is a JSON object, this is {kind_of(value)}")
        if rb"\ud" in raw.lower():
            _refuse_half_characters(value, row)
        yield Row(name, line, value)


def _text(raw: bytes, row: Row) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise row.problem(
            Reason.DataUnreadable, f"byte {error.start + 1} is not UTF-8", "Save the file as UTF-8."
        ) from error


def _refuse_half_characters(value: dict[str, Any], row: Row) -> None:
    """JSON may spell half of a surrogate pair, which is no character and cannot be tokenised."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise row.problem(Reason.DataUnreadable, r"a \ud… escape without its other half is no character") from error


def _passages(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    paragraphs: list[str] = []
    start = size = 0
    for line, raw in enumerate(lines, start=1):
        text = _text(raw, Row(name, line, {})).rstrip()
        if text and not paragraphs:
            start = line
        if text or paragraphs:
            paragraphs.append(text)
            size += len(text)
        if not text and size >= PASSAGE:
            yield _passage(name, start, paragraphs)
            paragraphs, size = [], 0
    if paragraphs:
        yield _passage(name, start, paragraphs)


def _passage(name: str, line: int, paragraphs: list[str]) -> Row:
    return Row(name, line, {"text": "\n".join(paragraphs).rstrip()})


def _table(path: Path, name: str) -> Iterator[Row]:
    """A null is a key that is not there: tables have a column for every key that any row has."""
    import pyarrow

    number = 0
    try:
        for batch in _batches(path):
            for record in batch.to_pylist():
                number += 1
                fields = {key: value for key, value in record.items() if value is not None}
                yield Row(name, number, fields, "row")
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise Row(name, number + 1, {}, "row").problem(
            Reason.DataUnreadable,
            f"the file is damaged, or not what its name says: {error}",
            "Write or upload it again.",
        ) from error


def _batches(path: Path) -> Iterator[Any]:
    """pyarrow.RecordBatch."""
    import pyarrow
    from pyarrow import ipc, parquet

    with path.open("rb") as file:
        if path.suffix == ".parquet":
            yield from parquet.ParquetFile(file, pre_buffer=False).iter_batches(_AT_ONCE, use_threads=False)
            return
        try:
            opened = ipc.open_file(file)
            batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
        except pyarrow.ArrowInvalid:
            file.seek(0)
            batches = iter(ipc.open_stream(file))
        for batch in batches:
            yield from (batch.slice(start, _AT_ONCE) for start in range(0, batch.num_rows, _AT_ONCE))


def kind_of(value: object) -> str:
    """A JSON value's type in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
