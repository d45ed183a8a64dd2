"""Files to rows.

.jsonl    one JSON object a line
.txt      plain text, cut at blank lines into passages of about 4,000 characters: one row `{"text": …}` each
.gz       either of them, compressed
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.failures import FinetuneError, Reason

PASSAGE = 4000
"""Characters: long enough to have context, short enough for a file to be split into training and validation rows."""


@dataclass(frozen=True)
class Row:
    file: str
    line: int
    """From 1, as editors count."""
    fields: dict[str, Any]

    def problem(self, reason: Reason, what: str, hint: str = "") -> FinetuneError:
        """To be raised: what is wrong with this row."""
        return FinetuneError(reason, f"{self.file} line {self.line}: {what}", hint)


def read_rows(path: Path, *, name: str | None = None) -> list[Row]:
    """All rows of a file, which messages call `name`. DataNotFound, DataEmpty, DataUnreadable."""
    name = name or str(path)
    stem = path.name.removesuffix(".gz")
    if not stem.endswith((".jsonl", ".txt")):
        raise FinetuneError(
            Reason.DataUnreadable,
            f"{name} is neither .jsonl, .jsonl.gz nor .txt",
            "Convert it: one JSON object a line.",
        )
    content = _content(path, name, compressed=stem != path.name)
    rows = list(_objects(content, name) if stem.endswith(".jsonl") else _passages(content, name))
    if not rows:
        raise FinetuneError(Reason.DataEmpty, f"{name} has no rows")
    return rows


def _content(path: Path, name: str, *, compressed: bool) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FinetuneError(Reason.DataNotFound, f"there is no file {name}") from error
    except OSError as error:
        raise FinetuneError(Reason.DataUnreadable, f"{name} cannot be read: {error.strerror}") from error
    if not compressed:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise FinetuneError(
            Reason.DataUnreadable, f"{name} is not a whole gzip file: {error}", "Compress or upload it again."
        ) from error


def _objects(content: bytes, name: str) -> Iterator[Row]:
    for line, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
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


def _passages(content: bytes, name: str) -> Iterator[Row]:
    paragraphs: list[str] = []
    start = 0
    for line, raw in enumerate([*content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), b""], start=1):
        text = _text(raw, Row(name, line, {})).rstrip()
        if text and not paragraphs:
            start = line
        if text or paragraphs:
            paragraphs.append(text)
        if not text and sum(map(len, paragraphs)) >= PASSAGE:
            yield _passage(name, start, paragraphs)
            paragraphs = []
    if paragraphs:
        yield _passage(name, start, paragraphs)


def _passage(name: str, line: int, paragraphs: list[str]) -> Row:
    return Row(name, line, {"text": "\n".join(paragraphs).rstrip()})


def kind_of(value: object) -> str:
    """A JSON value's type in words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
