"""How varied generated text is: distinct n-grams and entropy, and by how much they fall from one model to another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.statistics.differences import ALPHA
from finetune_trainer.statistics.intervals import Floats, independent_groups, residual_error, totals
from finetune_trainer.statistics.multiplicity import bonferroni
from finetune_trainer.statistics.quantiles import t_quantile

FIGURES = ("distinct-1", "distinct-2", "distinct-4", "entropy")


@dataclass(frozen=True, kw_only=True)
class Drop:
    """The share by which a figure falls: 1 - mean of the tuned model / mean of the base."""

    name: str
    base: float
    tuned: float
    value: float
    low: float
    high: float


def distinct(tokens: Sequence[int], n: int) -> float:
    """Different n-grams by n-grams; 1 for a text too short to have one. 1 - distinct(…, 4) is the share of repeated
    4-grams."""
    grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def entropy(tokens: Sequence[int]) -> float:
    """Bits per token of the text's own unigrams."""
    total = len(tokens)
    return -sum(count / total * math.log2(count / total) for count in sorted(Counter(tokens).values()))


def figures(tokens: Sequence[int]) -> tuple[float, ...]:
    """In the order of FIGURES."""
    return *(distinct(tokens, n) for n in (1, 2, 4)), entropy(tokens)


def relative_drops(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    alpha: float = ALPHA,
    cut: bool = True,
    groups: Sequence[Hashable] | None = None,
) -> tuple[Drop, ...]:
    """Of each figure, from (base, tuned) texts of the same prompts, at least two. The intervals hold together. cut:
    both texts of a prompt to the length of the shorter one. groups: of prompts that are not independent."""
    labels = range(len(pairs)) if groups is None else groups
    rows = sorted((_row(*pair, cut=cut), str(label)) for pair, label in zip(pairs, labels, strict=True))
    table = np.array([row for row, _ in rows], np.float64).reshape(len(rows), 2, len(FIGURES))
    number = np.unique([label for _, label in rows], return_inverse=True)[1].astype(np.int64)
    return tuple(
        _drop(name, table[:, 0, at], table[:, 1, at], number, alpha=bonferroni(alpha, len(FIGURES)))
        for at, name in enumerate(FIGURES)
    )


def _row(base: Sequence[int], tuned: Sequence[int], *, cut: bool) -> tuple[float, ...]:
    shorter = min(len(base), len(tuned)) if cut else None
    return *figures(base[:shorter]), *figures(tuned[:shorter])


def _drop(name: str, base: Floats, tuned: Floats, groups: NDArray[np.int64], *, alpha: float) -> Drop:
    before, after = float(base.sum()), float(tuned.sum())
    if before == 0:  # every text is one token over and over: nothing can fall
        return Drop(name=name, base=0.0, tuned=after / len(base), value=0.0, low=0.0, high=0.0)
    ratio = after / before
    fallen, shares = totals(groups, (tuned - ratio * base) / before, base / before)
    # One group more that fell and one that rose, as `paired` has them for scores: where no text changed, or few did,
    # the next one may still be the first that repeats itself.
    count = len(fallen)
    moved = fallen[fallen != 0] * count
    size = math.sqrt((float(np.sum(moved**2)) + 1) / (len(moved) + 1)) / count
    error = residual_error(np.r_[fallen, size, -size], np.r_[shares, 1 / count, 1 / count])
    half = t_quantile(1 - alpha / 2, max(1.0, independent_groups(shares) - 1)) * error
    fall = 1 - ratio
    return Drop(
        name=name, base=before / len(base), tuned=after / len(base), value=fall, low=fall - half, high=fall + half
    )
