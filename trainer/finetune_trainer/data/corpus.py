"""One data set as flat arrays: `tokens[offsets[i]:offsets[i + 1]]` is row i.

A token is *trained* when it is a target: the network predicts it from the tokens before it, and the loss says if it was
wrong. The first token of a row has nothing before it and is never trained, so `trained.sum()` counts the targets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]

_FILES = "files.json"


class CorpusRow(NamedTuple):
    tokens: Tokens
    trained: Flags


@dataclass(frozen=True)
class Choices:
    """What a classification row could have said instead.

    Every label's answer ends with the end-of-turn token. So an answer's probability is that of exactly this label:
    labels of different lengths, and labels that begin with another label, compare without any normalisation.
    """

    answers: tuple[Tokens, ...]
    """One for each label, in the order of the labels; the same for every row."""
    prompts: NDArray[np.int32]
    """(rows,): how many of a row's tokens come before its answer."""
    gold: NDArray[np.int32]
    """(rows,): the right label."""


@dataclass(frozen=True)
class Marks:
    """Which rows of the files the documents are; all 64 bits of a digest."""

    rows: NDArray[np.uint64]
    """(rows,): of the content. Windows of a long text, and the turns of a retold conversation, each have their own."""
    groups: NDArray[np.uint64]
    """(rows,): equal for documents that are not independent: of one row of the files, or of one value of groupBy."""
    sources: NDArray[np.uint64] | None = None
    """(rows,): positions in `files`, where documents come from several."""
    files: tuple[str, ...] = ()
    """Names of these, as reports show them."""

    def take(self, rows: Numbers | Flags) -> Marks:
        sources = None if self.sources is None else self.sources[rows]
        return Marks(self.rows[rows], self.groups[rows], sources, self.files)


class States(Protocol):
    """What the frozen layers of a network make of each row."""

    @property
    def dim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def row(self, index: int) -> NDArray[Any]:
        """(length of the row, dim)"""


@dataclass(frozen=True)
class Corpus:
    tokens: Tokens
    """(tokens,): all rows, one after another."""
    offsets: Numbers
    """(rows + 1,): where each row starts; the last is the number of tokens."""
    trained: Flags
    """(tokens,): whether the token is a target."""
    bytes: NDArray[np.int32]
    """(rows,): UTF-8 bytes of the trained text, without special tokens: for bits per byte."""
    choices: Choices | None = None
    """Of classification."""
    marks: Marks | None = None
    """Of data sets that were read from files."""
    before: Tokens = field(default_factory=lambda: np.zeros(0, np.int32))
    """In front of every row, and in no file: the tokens of a learned prompt."""
    states: States | None = None
    """Where a network's frozen layers need not run again."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Numbers:
        """(rows,): tokens of each row."""
        return np.diff(self.offsets) + len(self.before)

    @property
    def trained_tokens(self) -> int:
        return int(np.count_nonzero(self.trained))

    @cached_property
    def targets(self) -> Numbers:
        """(rows,): trained tokens of each row."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.trained, self.offsets[:-1], dtype=np.int64)

    def row(self, index: int) -> CorpusRow:
        where = slice(self.offsets[index], self.offsets[index + 1])
        if not len(self.before):
            return CorpusRow(self.tokens[where], self.trained[where])
        return CorpusRow(
            np.concatenate([self.before, self.tokens[where]]),
            np.concatenate([np.zeros(len(self.before), np.bool_), self.trained[where]]),
        )

    def after(self, tokens: Tokens) -> Corpus:
        """The same rows with `tokens` in front of each; they are never trained."""
        if not len(tokens):
            return self
        choices = self.choices and replace(self.choices, prompts=self.choices.prompts + np.int32(len(tokens)))
        return replace(self, before=np.concatenate([tokens, self.before]).astype(np.int32), choices=choices)

    def head(self, rows: int) -> Corpus:
        """The first rows: a cheaper estimate of the whole."""
        return self.take(np.arange(min(rows, len(self))))

    def take(self, rows: Numbers) -> Corpus:
        """These rows, in this order."""
        picked = [self.row(int(i)) for i in rows]
        choices = self.choices and Choices(self.choices.answers, self.choices.prompts[rows], self.choices.gold[rows])
        return corpus_of(
            [row.tokens for row in picked],
            [row.trained for row in picked],
            self.bytes[rows],
            choices=choices,
            marks=self.marks and self.marks.take(rows),
        )

    def with_every_answer(self) -> Corpus:
        """Each row once with each label's answer: row `i * labels + j` is prompt i answered by label j.

        The likeliest of a prompt's answers is the network's; it is right if it is number `choices.gold[i]`. Bytes are
        not counted. ValueError if the rows are not a classification.
        """
        if self.choices is None:
            raise ValueError("only rows of format classification have choices")
        tokens: list[Tokens] = []
        trained: list[Flags] = []
        for index in range(len(self)):
            prompt = self.row(index).tokens[: self.choices.prompts[index]]
            for answer in self.choices.answers:
                tokens.append(np.concatenate([prompt, answer]))
                trained.append(np.arange(len(prompt) + len(answer)) >= len(prompt))
        return corpus_of(tokens, trained, [0] * len(tokens))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokens", "offsets", "trained", "bytes"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        if self.choices:
            save_choices(self.choices, folder)
        if self.marks:
            save_marks(self.marks, folder)

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Map the arrays into memory: pages are read when they are used, and shared by the processes of a node."""
        arrays = {path.stem: _map(path) for path in folder.glob("*.npy")}
        choices = None
        if "gold" in arrays:
            answers = np.split(arrays["answers"], arrays["answer_offsets"][1:-1])
            choices = Choices(tuple(answers), arrays["prompts"], arrays["gold"])
        marks = Marks(arrays["rows"], arrays["groups"]) if "rows" in arrays else None
        if marks is not None and "sources" in arrays:
            files = tuple(json.loads((folder / _FILES).read_text()))
            marks = replace(marks, sources=arrays["sources"], files=files)
        return cls(arrays["tokens"], arrays["offsets"], arrays["trained"], arrays["bytes"], choices, marks)


def save_marks(marks: Marks, folder: Path) -> None:
    np.save(folder / "rows.npy", marks.rows)
    np.save(folder / "groups.npy", marks.groups)
    if marks.sources is not None:
        np.save(folder / "sources.npy", marks.sources)
        (folder / _FILES).write_text(json.dumps(marks.files))


def save_choices(choices: Choices, folder: Path) -> None:
    np.save(folder / "prompts.npy", choices.prompts)
    np.save(folder / "gold.npy", choices.gold)
    answers = corpus_of(choices.answers, [np.ones(len(a), bool) for a in choices.answers], [])
    np.save(folder / "answers.npy", answers.tokens)
    np.save(folder / "answer_offsets.npy", answers.offsets)


def corpus_of(
    tokens: Sequence[Tokens],
    trained: Sequence[Flags],
    sizes: Sequence[int] | NDArray[np.int32],
    *,
    choices: Choices | None = None,
    marks: Marks | None = None,
) -> Corpus:
    """A corpus of these rows; `sizes` are the bytes of their trained text."""
    offsets = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum([len(row) for row in tokens], out=offsets[1:])
    return Corpus(
        tokens=np.concatenate([np.zeros(0, np.int32), *tokens]).astype(np.int32, copy=False),
        offsets=offsets,
        trained=np.concatenate([np.zeros(0, np.bool_), *trained]),
        bytes=np.asarray(sizes, np.int32),
        choices=choices,
        marks=marks,
    )


def _map(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array if array.size else np.array(array)  # an empty file cannot be mapped
