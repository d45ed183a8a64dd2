"""Variants of training rows: what the model is asked is changed, what it has to answer never is.

    casing            the text in lower case, in capitals, or with a capital at each word
    characterNoise    some letters dropped, doubled, swapped with the next or mistyped
    templates         the text inside one of the manifest's own templates
    backoff           some words swapped for words of other training rows of the same label: a model that has to
                      fall back on the rest of the text learns not to hang on one word

Which rows, and what becomes of them, are functions of (seed, epoch, row): a run that resumes sees what it would have
seen. A variant is made when its step comes, which takes about 3 ms for a thousand tokens. One that is a held-out row by
now, or longer than data.sequenceLength, is not used: the row stays as it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from finetune_api.data import Augmentation, Data
from finetune_api.failures import FinetuneError
from finetune_trainer.random_streams import AUGMENTATION, AUGMENTED
from finetune_trainer.statistics import AugmentationStatistics

from .classification import Classification
from .corpus import Corpus, Flags, Numbers, corpus_of
from .encode import Limits, Piece, encode
from .formats import FORMATS, Document, Format
from .order import Mixture, step_rows
from .read import Row
from .split import fingerprint
from .tokenizer import Tokenizer

DEFAULT_RATE = 0.05

T = TypeVar("T")
Draw = Callable[[], float]
"""A number from 0 to 1, the next of its row."""


@dataclass(frozen=True)
class Variants:
    """All variants of a run's training rows; nothing is made before it is asked for."""

    spec: Data
    seed: int
    format: str
    labels: tuple[str, ...]
    tokenizer_path: Path
    texts: NDArray[np.uint8]
    """Training rows as JSON, a line each."""
    places: Numbers
    """(rows, 2): where the line of each row of `train` starts, and its bytes."""
    heldout: NDArray[np.uint64]
    """Sorted fingerprints of all rows that are measured."""
    train: Corpus

    def of(self, rows: Numbers, *, epoch: int) -> tuple[Corpus, Numbers]:
        """These rows as a corpus of their own, with the epoch's variants, and their numbers in it."""
        chosen = np.stack([self.chosen(kind, epoch)[rows] for kind in range(len(self.spec.augmentation))])
        places = np.flatnonzero(chosen.any(axis=0))
        pieces = [Piece(*self.train.row(int(row)), np.zeros(0, np.int64)) for row in rows]
        sizes = self.train.bytes[rows].copy()
        varied = {int(p): self.row(int(rows[p]), np.flatnonzero(chosen[:, p]).tolist(), epoch=epoch) for p in places}
        documents = {place: document for place, row in varied.items() if (document := self._document(row)) is not None}
        limits = Limits(self.spec.sequence_length, "drop")
        for place, outcome in zip(documents, encode(documents.values(), self._tokenizer, limits), strict=True):
            if len(outcome.pieces) == 1:
                [pieces[place]] = outcome.pieces
                sizes[place] = outcome.pieces[0].trained_bytes
        corpus = corpus_of([piece.tokens for piece in pieces], [piece.trained for piece in pieces], sizes)
        return corpus, np.arange(len(rows))

    def chosen(self, kind: int, epoch: int) -> Flags:
        """(rows,): whether the epoch applies this entry of data.augmentation."""
        return _chosen(len(self.places), self.spec.augmentation[kind].probability, self.seed, epoch, kind)

    def row(self, index: int, kinds: Sequence[int], *, epoch: int) -> Row | None:
        """The row after these entries of data.augmentation; None if it must stay as it is."""
        row = self.original(index)
        fields = row.fields
        for kind in kinds:
            start = AUGMENTATION.number(self.seed, epoch, index, kind)
            draw = random.Random(start).random  # the one method whose numbers Python promises for good
            change = self._change(self.spec.augmentation[kind], index, draw)
            fields = _asked_otherwise(fields, self.format, change)
        varied = Row(row.file, row.line, fields, row.unit)
        if fields == row.fields or self._is_held_out(varied):
            return None
        return varied

    def _document(self, row: Row | None) -> Document | None:
        """None where the model's template refuses the variant."""
        try:
            return None if row is None else self._form.document(row)
        except FinetuneError:
            return None

    def original(self, index: int) -> Row:
        start, size = (int(number) for number in self.places[index])
        line = bytes(self.texts[start : start + size])
        return Row("the training rows", index + 1, json.loads(line), "row")

    def statistics(self, mixture: Mixture, *, steps: int, batch_size: int) -> Iterator[AugmentationStatistics]:
        """Of the run's first steps."""
        seen = [step_rows(mixture, batch_size=batch_size, seed=self.seed, step=step) for step in range(steps)]
        per_epoch = -(-mixture.per_epoch // batch_size)
        for kind, each in enumerate(self.spec.augmentation):
            count = sum(int(self.chosen(kind, step // per_epoch)[rows].sum()) for step, rows in enumerate(seen))
            yield AugmentationStatistics(
                type=each.type, probability=each.probability, rows=sum(map(len, seen)), chosen=count
            )

    def _is_held_out(self, row: Row) -> bool:
        print_ = np.uint64(fingerprint(self._form.identity(row)))
        place = int(np.searchsorted(self.heldout, print_))
        return place < len(self.heldout) and self.heldout[place] == print_

    def _change(self, how: Augmentation, index: int, draw: Draw) -> Callable[[str], str]:
        rate = how.rate or DEFAULT_RATE
        if how.type == "casing":
            return lambda text: casing(text, draw)
        if how.type == "characterNoise":
            return lambda text: character_noise(text, draw, rate=rate)
        if how.type == "templates":
            return lambda text: _pick(how.templates or ("{text}",), draw).replace("{text}", text)
        return lambda text: backoff(text, draw, rate=rate, donor=lambda: self._other_words(index, draw))

    def _other_words(self, index: int, draw: Draw) -> Sequence[str]:
        """Words of another training row, of the same label where rows have labels."""
        same = self._of_label[int(self.train.choices.gold[index])] if self.train.choices else None
        count = len(self.places) if same is None else len(same)
        place = int(draw() * count)
        other = self.original(place if same is None else int(same[place]))
        return " ".join(_asked(other.fields, self.format)).split()

    @cached_property
    def _of_label(self) -> list[Numbers]:
        assert self.train.choices is not None
        return [np.flatnonzero(self.train.choices.gold == label) for label in range(len(self.labels))]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.tokenizer_path)

    @cached_property
    def _form(self) -> Format:
        if self.format != "classification":
            return FORMATS[self.format](self._tokenizer)
        wanted = self.spec.classification
        return Classification.of(self._tokenizer, self.labels, wanted.instruction if wanted else None)


@lru_cache(maxsize=16)
def _chosen(rows: int, probability: float, seed: int, epoch: int, kind: int) -> Flags:
    raw = AUGMENTED.raw(rows, seed, epoch, kind)
    flags: Flags = (raw >> np.uint64(11)) * 2.0**-53 < probability
    return flags


def casing(text: str, draw: Draw) -> str:
    return _pick((str.lower, str.upper, str.title), draw)(text)


def character_noise(text: str, draw: Draw, *, rate: float) -> str:
    """Letters only: figures and signs carry too much meaning."""
    letters = list(text)
    for place, letter in enumerate(letters):
        if not letter.isalpha() or draw() >= rate:
            continue
        how = int(draw() * 4)
        if how == 0:
            letters[place] = ""
        elif how == 1:
            letters[place] = letter * 2
        elif how == 2 and "".join(letters[place + 1 : place + 2]).isalpha():
            letters[place], letters[place + 1] = letters[place + 1], letter
        elif how == 3:
            letters[place] = "abcdefghijklmnopqrstuvwxyz"[int(draw() * 26)]
    return "".join(letters)


def backoff(text: str, draw: Draw, *, rate: float, donor: Callable[[], Sequence[str]]) -> str:
    """Words keep the white space around them; a donor without words changes nothing."""
    parts: list[str] = []
    word = ""
    for character in [*text, ""]:
        if character and not character.isspace():
            word += character
            continue
        if word and draw() < rate and (words := donor()):
            word = _pick(words, draw)
        parts += [word, character]
        word = ""
    return "".join(parts)


def _pick(of: Sequence[T], draw: Draw) -> T:
    return of[int(draw() * len(of))]


def _asked(fields: dict[str, Any], form: str) -> list[str]:
    """What the model is asked, in this format."""
    if form == "chat":
        return [m["content"] for m in fields["messages"] if m["role"] == "user" and isinstance(m.get("content"), str)]
    return [fields["text" if form == "classification" else "prompt"]]


def _asked_otherwise(fields: dict[str, Any], form: str, change: Callable[[str], str]) -> dict[str, Any]:
    if form == "chat":
        messages = [
            {**m, "content": change(m["content"])} if m["role"] == "user" and isinstance(m.get("content"), str) else m
            for m in fields["messages"]
        ]
        return {**fields, "messages": messages}
    key = "text" if form == "classification" else "prompt"
    return {**fields, key: change(fields[key])}
