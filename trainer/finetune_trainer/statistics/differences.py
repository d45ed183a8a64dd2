"""What a comparison of two models says: a difference, its interval, what could not have been seen, and a verdict.

`Estimate` is how a difference is known (counts of rows, or a standard error with degrees of freedom); `judged` turns it
into a `Difference`. Verdicts, in this order: equivalent, if the 90 % interval lies inside ± the practical margin;
better or worse, if the 95 % interval excludes 0; else inconclusive. With several comparisons both shares of error are
divided by their number. Below 20 rows or 10 groups there is no interval, and the verdict is inconclusive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from finetune_trainer.statistics.intervals import mcnemar, tango, tango_statistic
from finetune_trainer.statistics.quantiles import normal_cdf, t_cdf, t_quantile

ALPHA = 0.05
POWER = 0.8
FEWEST_ROWS = 20
FEWEST_GROUPS = 10
FEWEST_EQUAL_GROUPS = 2.0
"""Below it one group has nearly all of the weight, and what the others say does not show how it varies."""
INDEPENDENT = 1e9
"""Degrees of freedom of rows that need no estimate of their spread."""


class Verdict(StrEnum):
    better = "better"
    worse = "worse"
    equivalent = "equivalent"
    inconclusive = "inconclusive"


class Method(StrEnum):
    """Where an interval comes from."""

    tango = "tango"
    tango_groups = "tangoGroups"
    t = "t"
    none = "none"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is compared. The margin is the smallest difference that matters in practice, in the measure's unit."""

    name: str
    higher_is_better: bool
    margin: float
    unit: str
    bounded: bool = False
    """Whether it is a mean of one score from 0 to 1 a row."""
    judged: bool = True
    """Whether one direction is better, so that a difference has a verdict."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Tuned minus base, with a two-sided interval of the confidence 1 - alpha. low, high, p_value and
    minimum_detectable are None where there are too few rows to say anything."""

    measure: Measure
    base: float | None
    tuned: float | None
    difference: float | None
    low: float | None
    high: float | None
    minimum_detectable: float | None
    """The smallest difference that these rows would have shown in four of five repetitions (80 % power)."""
    p_value: float | None
    """Two-sided, of "no difference"; not adjusted."""
    rows: int
    groups: int
    method: Method
    verdict: Verdict
    margin: float
    alpha: float = ALPHA
    reason: str = ""
    """Why there is no interval."""
    effective_rows: float = 0.0
    """Independent rows that would say as much."""

    @classmethod
    def unknown(
        cls, measure: Measure, *, rows: int, groups: int, margin: float, alpha: float, reason: str
    ) -> Difference:
        """Of rows that are too few to say anything."""
        return cls(
            measure=measure, base=None, tuned=None, difference=None, low=None, high=None, minimum_detectable=None,
            p_value=None, rows=rows, groups=groups, method=Method.none, verdict=Verdict.inconclusive, margin=margin,
            alpha=alpha, reason=reason,
        )  # fmt: skip

    @classmethod
    def symmetric(
        cls, measure: Measure, *, base: float, tuned: float, error: float, freedom: float, rows: int, groups: int,
        margin: float, alpha: float, allowance: float = 0.0,
    ) -> Difference:  # fmt: skip
        """From a standard error with so many degrees of freedom; allowance: a bias that widens both sides."""
        found = Estimate(
            base=base, tuned=tuned, difference=tuned - base, error=error, freedom=freedom, allowance=allowance,
            effective_rows=float(groups), method=Method.t,
        )  # fmt: skip
        return found.judged(measure, rows=rows, groups=groups, margin=margin, alpha=alpha)


def too_few(*, rows: int, groups: int, equal: float | None = None) -> str:
    """Why nothing can be said about so few; empty text where something can. equal: groups of equal size that would say
    as much."""
    if rows < FEWEST_ROWS:
        return f"fewer than {FEWEST_ROWS} rows" if rows else "no rows"
    if groups < FEWEST_GROUPS:
        return f"fewer than {FEWEST_GROUPS} groups"
    return "one group has most of the rows" if equal is not None and equal < FEWEST_EQUAL_GROUPS else ""


def minimum_detectable(disagreement: float, rows: float, *, alpha: float = ALPHA, one_sided: bool = False) -> float:
    """Of two shares on the same rows: (z of alpha + z of POWER) · √(q/n), where q is the share of rows on which the
    models disagree. A difference cannot exceed the disagreement that makes it, so q is at least the result."""
    reach = t_quantile(1 - alpha / (1 if one_sided else 2), INDEPENDENT) + t_quantile(POWER, INDEPENDENT)
    return min(1.0, max(reach * math.sqrt(disagreement / rows), reach**2 / rows))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How a difference is known."""

    base: float | None = None
    tuned: float | None = None
    difference: float | None = None
    error: float = math.inf
    """Standard error of the difference."""
    allowance: float = 0.0
    """What an unknown bias adds to each side of the interval."""
    shrunk: float = 0.0
    """By how much the middle of the interval lies below the difference."""
    freedom: float = INDEPENDENT
    gained: float = 0.0
    lost: float = 0.0
    effective_rows: float = 0.0
    method: Method = Method.none
    reason: str = ""

    def widened(self, variance: float) -> Estimate:
        """With a variance so many times as large, as if of fewer rows."""
        if variance == 1:
            return self
        return replace(
            self, error=self.error * math.sqrt(variance), effective_rows=self.effective_rows / variance
        )  # fmt: skip

    def interval(self, alpha: float) -> tuple[float, float]:
        quantile = t_quantile(1 - alpha / 2, self.freedom)
        if self.method in (Method.tango, Method.tango_groups):
            count = self.effective_rows
            low, high = tango(self.gained * count, self.lost * count, count, quantile=quantile)
            return float(low), float(high)
        assert self.difference is not None
        middle, half = self.difference - self.shrunk, quantile * self.error + self.allowance
        return middle - half, middle + half

    def judged(self, measure: Measure, *, rows: int, groups: int, margin: float, alpha: float) -> Difference:
        low, high = self.interval(alpha) if self.method is not Method.none else (None, None)
        return Difference(
            measure=measure,
            base=self.base,
            tuned=self.tuned,
            difference=self.difference,
            low=low,
            high=high,
            minimum_detectable=self.detectable(alpha),
            p_value=self.p_value(),
            rows=rows,
            groups=groups,
            method=self.method,
            verdict=_verdict(self, measure, margin=margin, alpha=alpha),
            margin=margin,
            alpha=alpha,
            reason=self.reason,
            effective_rows=self.effective_rows,
        )

    def p_value(self) -> float | None:
        if self.method is Method.none:
            return None
        if self.method is Method.tango:
            return mcnemar(round(self.gained * self.effective_rows), round(self.lost * self.effective_rows))
        return min(1.0, 2 * min(self.tail(0.0, below=True), self.tail(0.0, below=False)))

    def tail(self, delta: float, *, below: bool) -> float:
        """One-sided p-value against "difference ≥ delta" (below) or "difference ≤ delta"."""
        if self.method in (Method.tango, Method.tango_groups):
            count = self.effective_rows
            score = float(tango_statistic(delta, self.gained * count, self.lost * count, count))
        else:
            assert self.difference is not None
            distance = self.difference - self.shrunk - delta
            distance = math.copysign(max(0.0, abs(distance) - self.allowance), distance)
            score = (
                0.0 if distance == 0 else math.copysign(math.inf, distance) if not self.error else distance / self.error
            )
        probability = normal_cdf(score) if self.freedom >= INDEPENDENT else t_cdf(score, self.freedom)
        return probability if below else 1 - probability

    def detectable(self, alpha: float) -> float | None:
        if self.method is Method.none:
            return None
        if self.method in (Method.tango, Method.tango_groups):
            return minimum_detectable(self.gained + self.lost, self.effective_rows, alpha=alpha)
        reach = t_quantile(1 - alpha / 2, self.freedom) + t_quantile(POWER, self.freedom)
        return reach * self.error + self.allowance


def _verdict(found: Estimate, measure: Measure, *, margin: float, alpha: float) -> Verdict:
    if found.method is Method.none:
        return Verdict.inconclusive
    low, high = found.interval(2 * alpha)
    if -margin < low and high < margin:
        return Verdict.equivalent
    low, high = found.interval(alpha)
    if low <= 0 <= high:
        return Verdict.inconclusive
    return Verdict.better if (low > 0) == measure.higher_is_better else Verdict.worse
