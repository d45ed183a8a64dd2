"""Two models on the same rows: by how much they differ, how sure that is, and what could not have been seen.

    difference(Paired.scores(base=[0, 1, …], tuned=[1, 1, …]))
    # Difference(base=.71, tuned=.75, difference=.04, low=.012, high=.068, minimum_detectable=.04, verdict=better, …)

A measure is a ratio of sums: right answers by rows, nats by bytes. The rows of one group (a document, a patient) are
not independent, so groups are what is counted.

- Scores of 0 and 1: Tango's score interval; with groups the same at the effective number of rows (the design effect of
  Rao and Scott) with Student's t of groups - 1. Without groups the p-value is McNemar's, exact.
- Everything else: the linearised residual of the ratio by group, by the jackknife, with Student's t of one less than
  the groups of equal size that would say as much. One huge document counts as one, however many small ones there are.
- Scores between 0 and 1 (ROUGE-L): as these, with a group more that gained and one that lost, after Bonett and Price
  (Journal of Educational and Behavioral Statistics 37 (2012) 479), of the size that differences have.
- Below 20 rows or 10 groups there is no interval, and the verdict is inconclusive: see `differences`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_trainer.statistics.differences import (
    ALPHA,
    INDEPENDENT,
    Difference,
    Estimate,
    Measure,
    Method,
    too_few,
)
from finetune_trainer.statistics.intervals import Floats, design_effect, independent_groups, residual_error, totals
from finetune_trainer.statistics.multiplicity import bonferroni

__all__ = [
    "ACCURACY",
    "BITS_PER_BYTE",
    "LOSS",
    "SCORE",
    "Difference",
    "Measure",
    "Paired",
    "difference",
    "worse_p_value",
]

ACCURACY = Measure(name="accuracy", higher_is_better=True, margin=0.01, unit="share of rows", bounded=True)
SCORE = Measure(name="score", higher_is_better=True, margin=0.01, unit="mean score", bounded=True)
BITS_PER_BYTE = Measure(name="bitsPerByte", higher_is_better=False, margin=0.01, unit="bits per byte")
LOSS = Measure(name="loss", higher_is_better=False, margin=0.02, unit="nats per trained token")


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """Measurements of two models on the same rows; arrays of one length.

    A model's figure is sum(values) / sum(weights): a score weighs 1 a row, nats weigh the row's tokens or its bytes
    times ln 2. Weights may differ between models (tokens of two tokenizers). groups: any label of each row; rows with
    the same label depend on each other. None: rows are independent.
    """

    measure: Measure
    base: Floats
    tuned: Floats
    base_weights: Floats
    tuned_weights: Floats
    groups: NDArray[np.int64]
    """Of each row, numbered from 0 in the order of labels."""

    @classmethod
    def of(
        cls,
        measure: Measure,
        *,
        base: ArrayLike,
        tuned: ArrayLike,
        weights: ArrayLike | None = None,
        base_weights: ArrayLike | None = None,
        groups: Sequence[Hashable] | NDArray[Any] | None = None,
    ) -> Paired:
        """weights: of the tuned model, and of the base unless base_weights are given; default 1. Raises ValueError
        for lengths that differ, and for values that are not finite."""
        first, second = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
        heavy = np.ones_like(second) if weights is None else np.asarray(weights, np.float64)
        light = heavy if base_weights is None else np.asarray(base_weights, np.float64)
        labels = np.arange(len(first)) if groups is None else np.asarray(groups)
        columns = (first, second, light, heavy)
        if any(column.shape != first.shape for column in (*columns, labels)) or first.ndim != 1:
            raise ValueError(f"not the same rows: {[column.shape for column in (*columns, labels)]}")
        if not all(np.isfinite(column).all() for column in columns):
            raise ValueError("values that are not finite cannot be compared")
        number = np.unique(labels, return_inverse=True)[1].astype(np.int64) if len(labels) else labels.astype(np.int64)
        # Sums of floats depend on their order, so rows get one that depends on nothing else.
        keys = (heavy, light, second, first) if groups is None else (heavy, light, second, first, number)
        order = np.lexsort(keys)
        return cls(
            measure=measure,
            base=first[order],
            tuned=second[order],
            base_weights=light[order],
            tuned_weights=heavy[order],
            groups=np.arange(len(order)) if groups is None else number[order],
        )

    @classmethod
    def scores(
        cls, *, base: ArrayLike, tuned: ArrayLike, groups: Sequence[Hashable] | None = None, measure: Measure = ACCURACY
    ) -> Paired:
        return cls.of(measure, base=base, tuned=tuned, groups=groups)

    @classmethod
    def losses(
        cls, *, base: ArrayLike, tuned: ArrayLike, tokens: ArrayLike, groups: Sequence[Hashable] | None = None,
        base_tokens: ArrayLike | None = None,
    ) -> Paired:  # fmt: skip
        """From nats of each row, summed over its trained tokens."""
        return cls.of(LOSS, base=base, tuned=tuned, weights=tokens, base_weights=base_tokens, groups=groups)

    @classmethod
    def bits_per_byte(
        cls, *, base: ArrayLike, tuned: ArrayLike, sizes: ArrayLike, groups: Sequence[Hashable] | None = None
    ) -> Paired:
        """From nats of each row, and the bytes of its trained text."""
        weights = np.asarray(sizes, np.float64) * math.log(2)
        return cls.of(BITS_PER_BYTE, base=base, tuned=tuned, weights=weights, groups=groups)

    @property
    def rows(self) -> int:
        return len(self.base)

    @property
    def group_count(self) -> int:
        return int(self.groups.max()) + 1 if self.rows else 0

    @property
    def grouped(self) -> bool:
        """Whether any group has more than one row."""
        return self.group_count < self.rows

    @property
    def binary(self) -> bool:
        """Whether each row is right or wrong."""
        values, weights = (
            np.concatenate([self.base, self.tuned]),
            np.concatenate([self.base_weights, self.tuned_weights]),
        )
        return bool(((values == 0) | (values == 1)).all() and (weights == 1).all())


def difference(
    paired: Paired,
    *,
    margin: float | None = None,
    comparisons: int = 1,
    alpha: float = ALPHA,
    variance: float = 1.0,
) -> Difference:
    """The paired difference and its verdict. comparisons: how many are judged together (slices); the interval's share
    of error is alpha / comparisons. margin: default the measure's. variance: how many times as large as that of rows
    which say something about one pair of models (cross-fitting)."""
    within = paired.measure.margin if margin is None else margin
    return (
        _estimate(paired)
        .widened(variance)
        .judged(
            paired.measure,
            rows=paired.rows,
            groups=paired.group_count,
            margin=within,
            alpha=bonferroni(alpha, comparisons),
        )
    )


def worse_p_value(paired: Paired, *, margin: float = 0.0) -> float | None:
    """One-sided, of "the tuned model is worse by at most `margin`": small where it is worse by more. None: too few
    rows."""
    found = _estimate(paired)
    if found.method is Method.none:
        return None
    if paired.measure.higher_is_better:
        return found.tail(-margin, below=True)
    return found.tail(margin, below=False)


def _estimate(paired: Paired) -> Estimate:
    if not paired.rows or not paired.base_weights.sum() or not paired.tuned_weights.sum():
        return Estimate(reason="no rows")
    base = float(paired.base.sum() / paired.base_weights.sum())
    tuned = float(paired.tuned.sum() / paired.tuned_weights.sum())
    lacking = too_few(rows=paired.rows, groups=paired.group_count, equal=_equal_groups(paired))
    if lacking:
        return Estimate(base=base, tuned=tuned, difference=tuned - base, reason=lacking)
    return _of_counts(paired, base, tuned) if paired.binary else _of_ratios(paired, base, tuned)


def _equal_groups(paired: Paired) -> float:
    weights = totals(paired.groups, paired.base_weights, paired.tuned_weights)
    return min(independent_groups(each) for each in weights)


def _of_counts(paired: Paired, base: float, tuned: float) -> Estimate:
    gained, lost = _ones(paired.tuned > paired.base), _ones(paired.tuned < paired.base)
    effect, freedom, method = 1.0, INDEPENDENT, Method.tango
    if paired.grouped:
        by_group = totals(paired.groups, gained, lost, np.ones(paired.rows))
        effect, freedom, method = design_effect(*by_group), _equal_groups(paired) - 1, Method.tango_groups
    share = 1 / paired.rows
    return Estimate(
        base=base,
        tuned=tuned,
        difference=tuned - base,
        error=math.sqrt(effect * share * max(0.0, float(gained.mean() + lost.mean()) - (tuned - base) ** 2)),
        freedom=freedom,
        gained=float(gained.sum()) * share,
        lost=float(lost.sum()) * share,
        effective_rows=paired.rows / effect,
        method=method,
    )


def _ones(where: NDArray[np.bool_]) -> Floats:
    return where.astype(np.float64)


def _of_ratios(paired: Paired, base: float, tuned: float) -> Estimate:
    heavy, light = float(paired.tuned_weights.sum()), float(paired.base_weights.sum())
    each = (paired.tuned - tuned * paired.tuned_weights) / heavy - (paired.base - base * paired.base_weights) / light
    by_group, share = totals(paired.groups, each, (paired.tuned_weights / heavy + paired.base_weights / light) / 2)
    independent, shrunk = residual_error(each), 0.0
    error = residual_error(by_group, share)
    if paired.measure.bounded:
        error, shrunk = _with_two_more(paired, tuned - base)
    return Estimate(
        base=base,
        tuned=tuned,
        difference=tuned - base,
        error=error,
        shrunk=shrunk,
        freedom=_equal_groups(paired) - 1,
        effective_rows=paired.rows * min(1.0, (independent / error) ** 2) if error else float(paired.rows),
        method=Method.t,
    )


def _with_two_more(paired: Paired, difference: float) -> tuple[float, float]:
    """(standard error, by how much the difference shrinks) with one more group that gained and one that lost.

    Of 50 rows on which a score changes in 3 %, one sample in five shows no change at all, and a standard error of 0
    would make it certain. The two have the size of an average group, and the root mean square of the changes that
    groups have, with a change of 1 among them: large where few groups changed, and no matter where all did."""
    changed, rows = totals(paired.groups, paired.tuned - paired.base, np.ones(paired.rows))
    means = changed[changed != 0] / rows[changed != 0]
    size = math.sqrt((float(np.sum(means**2)) + 1) / (len(means) + 1))
    average = float(rows.mean())
    sizes = np.r_[rows, average, average]
    everything = np.r_[changed, size * average, -size * average]
    total = float(sizes.sum())
    middle = float(changed.sum()) / total
    return residual_error((everything - middle * sizes) / total, sizes / total), difference - middle
