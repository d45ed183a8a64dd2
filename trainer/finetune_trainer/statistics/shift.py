"""How far a text is from another, before anything is trained: bits per byte of both, the tokens they use, and how many
tokens a byte takes.

Bits per byte and never perplexity: a model with more tokens a byte looks better by perplexity. Absolute bits per byte
of two scripts are not comparable, since a letter takes one byte in one and three in the other; the number of tokens per
byte shows such a change instead.

    jensen_shannon   in bits: 0 for equal distributions of tokens, 1 for texts without a common token
    excess           the same without its floor: two samples of one text are not equal either, and the floor is what
                     halves of each text have between them
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.statistics.differences import ALPHA
from finetune_trainer.statistics.intervals import Floats
from finetune_trainer.statistics.quantiles import t_quantile

Tokens = NDArray[np.int32]
Band = Literal["small", "medium", "large"]

SMALL, LARGE = 0.15, 0.4
"""Bounds of the shift by bits per byte; SMALL bounds the excess of Jensen and Shannon too."""
LONGER = 1.3
"""Tokens per byte, relative to general text, from which on the vocabulary does not suit the text."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    value: float
    low: float
    high: float


def bits_per_byte(nats: Floats, sizes: Floats) -> float:
    """nats, sizes: (documents,), sizes in bytes."""
    return float(nats.sum() / (math.log(2) * sizes.sum()))


def ratio_of_bits(task: tuple[Floats, Floats], general: tuple[Floats, Floats], *, alpha: float = ALPHA) -> Ratio:
    """Bits per byte of the task's text by those of general text, each (nats, bytes) by document, two or more. The
    interval is that of the difference of logarithms, with errors from the spread over documents (delta method)."""
    values, variances = zip(*map(_log_mean, (task, general)), strict=True)
    centre = values[0] - values[1]
    half = t_quantile(1 - alpha / 2, min(len(task[0]), len(general[0])) - 1.0) * math.sqrt(sum(variances))
    return Ratio(value=math.exp(centre), low=math.exp(centre - half), high=math.exp(centre + half))


def _log_mean(text: tuple[Floats, Floats]) -> tuple[float, float]:
    """(log of nats by byte, its variance)"""
    nats, sizes = text
    mean, count = nats.sum() / sizes.sum(), len(nats)
    residuals = (nats - mean * sizes) / nats.sum()
    return math.log(mean), float((residuals**2).sum() * count / (count - 1))


def jensen_shannon(one: Tokens, other: Tokens) -> float:
    """In bits, between the distributions of tokens of two texts."""
    size = int(max(one.max(), other.max())) + 1
    first, second = (np.bincount(text, minlength=size) / len(text) for text in (one, other))
    middle = (first + second) / 2
    return (_entropy(middle) - _entropy(first) / 2 - _entropy(second) / 2) / math.log(2)


def _entropy(chances: Floats) -> float:
    kept = chances[chances > 0]
    return float(-(kept * np.log(kept)).sum())


def excess(one: Sequence[Tokens], other: Sequence[Tokens]) -> float:
    """Of documents: even and odd documents of each are compared with those of the other and with each other, all by
    as many tokens, since the floor falls with the size of a sample. May be a little below 0."""
    halves = [np.concatenate([*texts[start::2]]) for texts in (one, other) for start in (0, 1)]
    count = min(map(len, halves))
    a, b, c, d = (half[:count] for half in halves)
    across = [jensen_shannon(left, right) for left in (a, b) for right in (c, d)]
    return sum(across) / 4 - (jensen_shannon(a, b) + jensen_shannon(c, d)) / 2


def band(ratio: Ratio, divergence: float, longer: float) -> Band:
    """How large the shift is. `longer`: tokens per byte of the task, relative to general text."""
    shift = max(0.0, ratio.value - 1)
    if shift > LARGE or longer > LONGER:
        return "large"
    return "small" if shift < SMALL and divergence < SMALL else "medium"
