"""Outcomes to a corpus on disk, row by row, and what there is to know about each row: memory grows by some sixty bytes
a row, whatever its length."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.statistics import SplitStatistics

from .corpus import Choices, Corpus, Flags, Marks, Tokens, save_choices, save_marks
from .encode import Limits, Outcome
from .read import Row
from .split import Mark, part_of

_OVERLONG, _DROPPED, _SPLIT, _UNTRAINED, _RETOLD, _CLOSED, _EMPTIED = 1, 2, 4, 8, 16, 32, 64
_UNMARKED = Mark(0, 0)
_COPIED = 1 << 22
"""Tokens that are copied at a time."""
MOST_SOURCES = 16
"""Files of one data set that are reported one by one; more are parts of one body of text."""
_LONGEST_NAME = 48


@dataclass(frozen=True)
class Facts:
    """One entry for each row of the files."""

    documents: NDArray[np.int64]
    flags: NDArray[np.uint8]
    twins: NDArray[np.uint64]
    """The same for rows that are the same example; see split.fingerprint."""
    keys: NDArray[np.uint64]
    """By which rows are held out; see split.hold_out."""
    places: Places
    ignored: NDArray[np.uint32]
    """Bit i: whether the row had key i of `keys_ignored`."""
    keys_ignored: tuple[str, ...]
    longest: int
    """Tokens of the longest row that is too long; else 0."""

    def _rows_with(self, bit: int, mask: Flags | None) -> int:
        ignored = self.ignored if mask is None else self.ignored[mask]
        return int(np.count_nonzero(ignored & np.uint32(1 << bit)))

    def statistics(self, corpus: Corpus, mask: Flags | None = None) -> SplitStatistics:
        """Of the rows in `mask`, which are those that `corpus` is made of."""
        flags = self.flags if mask is None else self.flags[mask]

        def count(flag: int) -> int:
            return int(np.count_nonzero(flags & flag))

        return SplitStatistics(
            rows=len(flags),
            documents=len(corpus),
            tokens=len(corpus.tokens),
            trained_tokens=corpus.trained_tokens,
            trained_bytes=int(corpus.bytes.sum()),
            longest=int(corpus.lengths.max(initial=0)),
            overlong=count(_OVERLONG),
            dropped=count(_DROPPED),
            split=count(_SPLIT),
            untrained=count(_UNTRAINED),
            retold=count(_RETOLD),
            closed=count(_CLOSED),
            emptied=count(_EMPTIED),
            ignored={key: n for bit, key in enumerate(self.keys_ignored) if (n := self._rows_with(bit, mask))},
        )


@dataclass
class Places:
    """Where rows stand: file and line, in little memory."""

    lines: array[int] = field(default_factory=lambda: array("Q"))
    starts: list[int] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        if not self.files or self.files[-1] != (row.file, row.unit):
            self.starts.append(len(self.lines))
            self.files.append((row.file, row.unit))
        self.lines.append(row.line)

    def __getitem__(self, index: int) -> str:
        file, unit = self.files[bisect_right(self.starts, index) - 1]
        return f"{file} {unit} {self.lines[index]}"


class CorpusWriter:
    """A context: the files are complete when it ends without an error."""

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        *,
        answers: Sequence[Tokens] = (),
        texts: Path | None = None,
        ignored: Sequence[str] = (),
        by_file: bool = False,
    ):
        """`answers` are those of the labels, when rows have labels. `texts`: where rows are kept as text too. `ignored`
        are the keys of data.ignoreKeys, of which rows are counted. by_file: whether documents say which file they are
        of."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limits, self._answers = folder, limits, tuple(answers)
        self._open = ExitStack()
        self._tokens = self._open.enter_context(GrowingArray(folder / "tokens.npy", np.int32))
        self._trained = self._open.enter_context(GrowingArray(folder / "trained.npy", np.bool_))
        self._texts = self._open.enter_context(texts.open("wb")) if texts else None
        self._text_places: list[tuple[int, int]] = []
        self._lengths, self._bytes = array("Q"), array("l")
        self._prompts, self._gold = array("l"), array("l")
        self._rows, self._groups = array("Q"), array("Q")
        self._sources, self._files, self._by_file = array("Q"), dict[str, int](), by_file
        self._documents, self._flags = array("l"), array("B")
        self._twins, self._keys = array("Q"), array("Q")
        self._keys_ignored, self._ignored = tuple(ignored), array("L")
        self._places = Places()
        self._longest: tuple[int, Row] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._open.close()
        if error is None:
            self._finish()

    def add(self, outcome: Outcome, *, mark: Mark = _UNMARKED, twin: int = 0, key: int = 0) -> None:
        row = outcome.document.row
        for number, piece in enumerate(outcome.pieces):
            self._rows.append(part_of(mark.row, number))
            self._groups.append(mark.group)
            if self._by_file:
                self._sources.append(self._files.setdefault(row.file, len(self._files)))
            self._tokens.append(piece.tokens)
            self._trained.append(piece.trained)
            self._lengths.append(len(piece))
            self._bytes.append(piece.trained_bytes)
            if self._answers:
                self._add_choice(outcome)
            if self._texts is not None:
                line = json.dumps(row.fields, default=str).encode()
                self._text_places.append((self._texts.tell(), len(line)))
                self._texts.write(line + b"\n")
        self._documents.append(len(outcome.pieces))
        named = (
            (outcome.needed, _OVERLONG),
            (outcome.dropped, _DROPPED),
            (outcome.split, _SPLIT),
            (outcome.untrained, _UNTRAINED),
            (outcome.document.further, _RETOLD),
            (outcome.document.closed, _CLOSED),
            (outcome.needed and outcome.untrained, _EMPTIED),
        )
        self._flags.append(sum(bit for on, bit in named if on))
        self._ignored.append(sum(1 << self._keys_ignored.index(key) for key in row.ignored))
        self._twins.append(twin)
        self._keys.append(key)
        self._places.add(row)
        if outcome.needed and (self._longest is None or outcome.needed > self._longest[0]):
            self._longest = (outcome.needed, row)

    def facts(self) -> Facts:
        return Facts(
            np.array(self._documents, np.int64),
            np.array(self._flags, np.uint8),
            np.array(self._twins, np.uint64),
            np.array(self._keys, np.uint64),
            self._places,
            np.array(self._ignored, np.uint32),
            self._keys_ignored,
            self._longest[0] if self._longest else 0,
        )

    def check(self) -> None:
        """SequenceTooLong where that is to fail: the longest row, and how many there are."""
        if self._longest is None or self._limits.overlong != "fail":
            return
        needed, row = self._longest
        overlong = sum(flag & _OVERLONG for flag in self._flags)
        raise row.problem(
            Reason.SequenceTooLong,
            f"{needed} tokens are more than data.sequenceLength {self._limits.sequence_length}; "
            f"so are {overlong} of the {len(self._flags)} rows, of which this is the longest",
        )

    def _add_choice(self, outcome: Outcome) -> None:
        [piece], label = outcome.pieces, outcome.document.label
        assert label is not None, "documents with answers have labels"
        if not np.array_equal(piece.tokens[piece.trained], self._answers[label]):
            raise outcome.document.row.problem(
                Reason.ModelUnsupported, "the model's tokenizer writes the label otherwise here than in other rows"
            )
        self._prompts.append(int(np.argmax(piece.trained)))
        self._gold.append(label)

    def _finish(self) -> None:
        offsets = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(np.array(self._lengths, np.int64), out=offsets[1:])
        np.save(self._folder / "offsets.npy", offsets)
        np.save(self._folder / "bytes.npy", np.array(self._bytes, np.int32))
        marks = Marks(np.array(self._rows, np.uint64), np.array(self._groups, np.uint64))
        if 1 < len(self._files) <= MOST_SOURCES:
            marks = replace(marks, sources=np.array(self._sources, np.uint64), files=short_names(list(self._files)))
        save_marks(marks, self._folder)
        if self._texts is not None:
            np.save(self._folder / "texts.npy", np.array(self._text_places, np.int64).reshape(-1, 2))
        if self._answers:
            choices = Choices(self._answers, np.array(self._prompts, np.int32), np.array(self._gold, np.int32))
            save_choices(choices, self._folder)


def short_names(files: Sequence[str]) -> tuple[str, ...]:
    """Without the folder that all have in common, and without endings where that leaves them different:
    s3://a/b/wiki.jsonl and s3://a/b/code/x.jsonl are wiki and code/x."""
    split = [file.split("/") for file in files]
    common = next(at for at, parts in enumerate(zip(*split, strict=False)) if len(set(parts)) > 1)
    names = ["/".join(parts[common:]) for parts in split]
    plain = ["/".join([*parts[common:-1], parts[-1].split(".", 1)[0]]) for parts in split]
    shown = [name[-_LONGEST_NAME:] for name in (plain if len(set(plain)) == len(files) else names)]
    return tuple(shown if len(set(shown)) == len(files) else (f"file {at + 1}" for at in range(len(files))))


class GrowingArray:
    """A one-dimensional .npy file that is written piece by piece; numpy's header has space for the final length."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._count = np.dtype(dtype), 0
        self._start = self._header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        if self._header() != self._start:
            raise AssertionError("numpy's header has grown")
        self._file.close()

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._count += len(values)

    def _header(self) -> int:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        content = {"descr": descr, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, content)
        return self._file.tell()


def select(corpus: Corpus, documents: Flags, folder: Path) -> None:
    """The corpus of these documents, without having it in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = corpus.lengths
    with GrowingArray(folder / "tokens.npy", np.int32) as tokens, GrowingArray(folder / "trained.npy", np.bool_) as on:
        for first, behind in _blocks(corpus, _COPIED):
            kept = np.repeat(documents[first:behind], lengths[first:behind])
            where = slice(corpus.offsets[first], corpus.offsets[behind])
            tokens.append(corpus.tokens[where][kept])
            on.append(corpus.trained[where][kept])
    offsets = np.zeros(int(documents.sum()) + 1, np.int64)
    np.cumsum(lengths[documents], out=offsets[1:])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "bytes.npy", corpus.bytes[documents])
    if corpus.marks:
        save_marks(corpus.marks.take(documents), folder)
    if corpus.choices:
        prompts, gold = corpus.choices.prompts[documents], corpus.choices.gold[documents]
        save_choices(Choices(corpus.choices.answers, prompts, gold), folder)


def _blocks(corpus: Corpus, tokens: int) -> list[tuple[int, int]]:
    """Runs of whole documents with about so many tokens."""
    blocks, first, count = [], 0, len(corpus)
    while first < count:
        behind = int(np.searchsorted(corpus.offsets, corpus.offsets[first] + tokens, "left"))
        behind = min(max(behind, first + 1), count)
        blocks.append((first, behind))
        first = behind
    return blocks


def nothing_left(name: str, counts: SplitStatistics, limits: Limits, *, longest: int) -> FinetuneError:
    """`longest`: tokens of the longest row that is too long."""
    if counts.emptied:
        return FinetuneError(
            Reason.SequenceTooLong,
            f"{name}: data.overlong truncate cut every trained token off {counts.emptied} of {counts.rows} rows, and "
            f"none is left: their answers start after data.sequenceLength {limits.sequence_length}",
            f"Set data.sequenceLength to {longest}, the longest row, or shorten what comes before the answers.",
        )
    if counts.dropped == counts.rows:
        return FinetuneError(
            Reason.SequenceTooLong,
            f"{name}: all {counts.rows} rows are longer than data.sequenceLength {limits.sequence_length}",
            "Raise data.sequenceLength.",
        )
    return FinetuneError(Reason.NothingToTrain, f"{name}: no token of its {counts.rows} rows is trained")
