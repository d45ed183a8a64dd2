"""Files to rows, one at a time: a file may be larger than memory.

.jsonl              one JSON object a line
.txt                plain text, cut at blank lines into passages of about 4,000 characters: one row `{"text": …}` each
.gz .zst            either of them, compressed
.parquet            tables; a column is a key, lists and structs are what they are in JSON
.arrow .feather     the same from Arrow's own files and streams

A remote file is read in place: lines from its start to its end, of a table the columns that are asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.ranges import Seekable, Sequential
from finetune_trainer.store.sources import SourceFile

from .json_errors import object_of, refuse_half_characters, unreadable

PASSAGE = 4000
"""Characters: long enough to have context, short enough for a file to be split into training and validation rows."""

TABLES = (".parquet", ".arrow", ".feather")
COMPRESSED = (".gz", ".zst")
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".txt.gz", ".txt.zst", *TABLES)
"""Endings of files that can be read."""

_AT_ONCE = 256
"""Rows of a table in memory."""
_COLUMN = 4 << 20
"""Bytes of a Parquet column that are read at a time: a group of rows may be larger than memory."""

LONGEST_LINE = 64 << 20
"""Bytes of a line, unpacked. It is held in memory as a whole."""

OF_ROWS = "rows:"
"""In front of a digest that is not a whole file's; see `iter_rows`."""

Keys = Collection[str] | None
"""Keys of a row that matter; None: all."""


@dataclass(frozen=True)
class Row:
    file: str
    line: int
    """From 1, as editors count."""
    fields: dict[str, Any]
    unit: str = "line"
    """What `line` counts: lines of text, or rows of a table."""
    continues: bool = False
    """Whether the next row is more of the same text."""
    nulls: tuple[str, ...] = ()
    """Keys that are there, and null."""
    ignored: tuple[str, ...] = ()
    """Keys of data.ignoreKeys that the row, or a turn of it, had."""

    def problem(self, reason: Reason, what: str, hint: str = "") -> FinetuneError:
        """To be raised: what is wrong with this row."""
        return FinetuneError(reason, f"{self.place}: {what}", hint)

    @property
    def place(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


def iter_rows(file: SourceFile, keys: Keys = None, others: set[str] | None = None) -> Generator[Row, None, str]:
    """The rows of a file, with these keys; the names of all others go to `others`. DataNotFound, DataEmpty,
    DataUnreadable and a store's errors, while it is read.

    Returns the sha256 of a remote file that was read whole. Of one that was read in parts, `rows:` and the sha256 of
    the rows as lines of JSON with sorted keys. Empty for a file of this machine.
    """
    if not file.uri.endswith(ENDINGS):
        raise FinetuneError(
            Reason.DataUnreadable,
            f"{file.uri} is none of {', '.join(ENDINGS)}",
            "Convert it to one JSON object a line (of a JSON list: jq -c '.[]' in.json > out.jsonl), or to Parquet.",
        )
    count, seen = 0, hashlib.sha256()
    with closing(_Opened(file)) as opened:
        for row in _rows(opened, keys, others):
            count += 1
            if opened.partly:
                seen.update(json.dumps(row.fields, sort_keys=True, default=str).encode() + b"\n")
            yield row
        if not count:
            raise FinetuneError(Reason.DataEmpty, f"{file.uri} has no rows")
        return OF_ROWS + seen.hexdigest() if opened.partly else opened.sha256()


class _Opened:
    """How a file is read, which is known when it has been looked into."""

    def __init__(self, file: SourceFile) -> None:
        self.name = file.uri
        self.partly = False
        self._where = file.where
        self._sequential: Sequential | None = None
        self._file: BinaryIO | None = None

    def lines(self) -> BinaryIO:
        """From the start to the end."""
        self.close()
        if isinstance(self._where, Path):
            self._file = self._where.open("rb")
            return self._file
        self.partly = False
        self._sequential = Sequential(self._where())
        self._file = io.BufferedReader(self._sequential, 1 << 16)
        return self._file

    def parts(self) -> BinaryIO:
        """Any part of it."""
        if isinstance(self._where, Path):
            return self.lines()
        self.close()
        self.partly = True
        self._file = cast(BinaryIO, Seekable(self._where()))
        return self._file

    def sha256(self) -> str:
        return self._sequential.sha256() if self._sequential else ""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _rows(opened: _Opened, keys: Keys, others: set[str] | None) -> Iterator[Row]:
    name = opened.name
    try:
        if name.endswith(TABLES):
            yield from _table(opened, keys, others)
            return
        packed = name.endswith(COMPRESSED)
        file = opened.lines()
        lines = _without_mark(_unpacked(file, name) if packed else _lines(file, name))
        plain = name.rpartition(".")[0] if packed else name
        yield from _objects(lines, name, keys, others) if plain.endswith(".jsonl") else _passages(lines, name)
    except FileNotFoundError as error:
        raise FinetuneError(Reason.DataNotFound, f"there is no file {name}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FinetuneError(
            Reason.DataUnreadable, f"{name} is not a whole gzip file: {error}", "Compress or upload it again."
        ) from error
    except OSError as error:
        raise FinetuneError(Reason.DataUnreadable, f"{name} cannot be read: {error.strerror or error}") from error


def _unpacked(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines. pyarrow's errors about invalid zstd are plain OSErrors, as those of a disk are."""
    if name.endswith(".gz"):
        yield from _lines(gzip.GzipFile(fileobj=file), name)
        return
    import pyarrow

    try:
        yield from _lines(io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"), 1 << 16), name)
    except OSError as error:
        if error.errno is not None:
            raise
        raise FinetuneError(
            Reason.DataUnreadable, f"{name} is not a whole zstd file: {error}", "Compress or upload it again."
        ) from error


def _lines(file: BinaryIO | gzip.GzipFile | io.BufferedReader, name: str) -> Iterator[bytes]:
    """With their ends. A file of a few KiB can unpack to a line of many GiB."""
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise FinetuneError(
                Reason.DataUnreadable,
                f"{name} line {number} has more than {LONGEST_LINE >> 20} MiB",
                "Write one row per line; split long texts into several rows.",
            )
        if not line:
            return
        yield line


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Without line ends, nor the byte order mark that some editors put in front."""
    for number, line in enumerate(lines):
        yield (line if number else line.removeprefix(b"\xef\xbb\xbf")).removesuffix(b"\n")


def _objects(lines: Iterable[bytes], name: str, keys: Keys, others: set[str] | None) -> Iterator[Row]:
    """A null is a key that is not there, at any depth, as in tables."""
    wanted = None if keys is None else frozenset(keys)
    for line, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        row = Row(name, line, {})
        value = object_of(_text(raw, row), row)
        nulls: tuple[str, ...] = ()
        if b"null" in raw:
            nulls = tuple(key for key, inner in value.items() if inner is None)
            try:
                value = without_nulls(value)
            except RecursionError as error:
                raise unreadable(error, value, row) from error
        if rb"\ud" in raw.lower():
            refuse_half_characters(value, row)
        if wanted is not None:
            if others is not None and not value.keys() <= wanted:
                others.update(value.keys() - wanted)
            value = {key: value[key] for key in value if key in wanted}
        yield Row(name, line, value, nulls=nulls)


def _text(raw: bytes, row: Row) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise row.problem(
            Reason.DataUnreadable, f"byte {error.start + 1} is not UTF-8", "Save the file as UTF-8."
        ) from error


def _passages(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    paragraphs: list[str] = []
    passage: Row | None = None
    start = size = 0
    for line, raw in enumerate(lines, start=1):
        text = _text(raw, Row(name, line, {})).rstrip()
        if text and not paragraphs:
            start = line
        if text or paragraphs:
            paragraphs.append(text)
            size += len(text)
        if not text and size >= PASSAGE:
            if passage:
                yield replace(passage, continues=True)
            passage = _passage(name, start, paragraphs)
            paragraphs, size = [], 0
    if paragraphs:
        if passage:
            yield replace(passage, continues=True)
        passage = _passage(name, start, paragraphs)
    if passage:
        yield passage


def _passage(name: str, line: int, paragraphs: list[str]) -> Row:
    return Row(name, line, {"text": "\n".join(paragraphs).rstrip()})


def _table(opened: _Opened, keys: Keys, others: set[str] | None) -> Iterator[Row]:
    """A null is a key that is not there, at any depth: tables have every key that any row has. A map is an object."""
    import pyarrow

    number = 0
    try:
        for batch in _batches(opened, keys, others):
            for record in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                nulls = tuple(key for key, inner in record.items() if inner is None)
                yield Row(opened.name, number, without_nulls(record), "row", nulls=nulls)
    except KeyError as error:
        place = Row(opened.name, number + 1, {}, "row")
        what = f"a map in this row, or in one of the next {_AT_ONCE}, has a key twice: {error}"
        raise place.problem(Reason.DataUnreadable, what, "Keep each key of a map once.") from error
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise Row(opened.name, number + 1, {}, "row").problem(
            Reason.DataUnreadable,
            f"the file is damaged, or not what its name says: {error}",
            "Write or upload it again.",
        ) from error


def without_nulls(value: Any) -> Any:
    """A row, or a part of it, without keys whose value is null."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _batches(opened: _Opened, keys: Keys, others: set[str] | None) -> Iterator[Any]:
    """pyarrow.RecordBatch of the columns that are there. Rows without any of them are rows all the same."""
    file = opened.parts()
    if opened.name.endswith(".parquet"):
        from pyarrow import parquet

        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_COLUMN)
        columns = _chosen(table.schema_arrow.names, keys, others)
        yield from table.iter_batches(_AT_ONCE, columns=columns, use_threads=False)
        return
    for batch in _arrow(opened, file, keys, others):
        chosen = batch.select(_chosen(batch.schema.names, keys, others))
        yield from (chosen.slice(start, _AT_ONCE) for start in range(0, chosen.num_rows, _AT_ONCE))


def _chosen(names: list[str], keys: Keys, others: set[str] | None) -> list[str]:
    """Of columns, those that are wanted; the rest goes to `others`."""
    chosen = [name for name in names if keys is None or name in keys]
    if others is not None:
        others.update(set(names) - set(chosen))
    return chosen


def _arrow(opened: _Opened, file: BinaryIO, keys: Keys, others: set[str] | None) -> Iterator[Any]:
    """From a file only the requested columns are read; a stream has to be read as it comes."""
    from pyarrow import ipc

    magic = file.read(6)
    if magic != b"ARROW1":
        yield from ipc.open_stream(opened.lines())
        return
    file.seek(0)
    names = ipc.open_file(file).schema.names
    _chosen(names, keys, others)
    wanted = [number for number, name in enumerate(names) if keys is None or name in keys]
    # No number at all would mean all of them.
    options = ipc.IpcReadOptions(included_fields=wanted or [0] if names else [], use_threads=False)
    table = ipc.open_file(file, options=options)
    yield from (table.get_batch(number) for number in range(table.num_record_batches))
