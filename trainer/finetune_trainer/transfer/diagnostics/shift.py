"""How far the training rows are from general text, for one model. Formulas and thresholds: `statistics.shift`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_trainer.data.corpus import Corpus
from finetune_trainer.statistics import shift
from finetune_trainer.statistics.intervals import Floats

FEWEST = 4
"""Documents of each text: the excess compares halves."""


@dataclass(frozen=True, kw_only=True)
class Text:
    name: str
    documents: int
    tokens_per_byte: float
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class Shift:
    task: Text
    general: Text
    ratio: shift.Ratio
    excess: float
    longer: float
    """Tokens per byte of the task, relative to general text."""
    band: shift.Band


def between(task: tuple[Corpus, Floats], general: tuple[Corpus, Floats], *, counted: tuple[Corpus, Corpus]) -> Shift:
    """Of each text the documents that the model read, with their nats (documents,); `counted`: larger samples of both,
    whose tokens alone are compared."""
    pairs = [(nats, corpus.bytes.astype(np.float64)) for corpus, nats in (task, general)]
    ratio = shift.ratio_of_bits(*pairs)
    divergence = shift.excess(*map(_trained, counted))
    first, second = (
        Text(
            name=name,
            documents=len(corpus),
            tokens_per_byte=corpus.trained_tokens / int(corpus.bytes.sum()),
            bits_per_byte=shift.bits_per_byte(*pair),
        )
        for name, (corpus, _), pair in zip(("training rows", "general text"), (task, general), pairs, strict=True)
    )
    longer = first.tokens_per_byte / second.tokens_per_byte
    band = shift.band(ratio, divergence, longer)
    return Shift(task=first, general=second, ratio=ratio, excess=divergence, longer=longer, band=band)


def _trained(corpus: Corpus) -> list[Any]:
    """Trained tokens of each document."""
    rows = [corpus.row(index) for index in range(len(corpus))]
    return [row.tokens[row.trained] for row in rows]
