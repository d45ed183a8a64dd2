"""Whether a rung is better than the best so far: the paired difference on the select half of the validation rows, or
on the training rows, each by the run that did not train on it (cross-fitting, where rows are few).

Taken: the gain is at least minGain and its lower bound is above zero. Otherwise "no gain" if the rows could have shown
the minimum gain (the upper bound is below it, or the minimum detectable effect is not above it), else "inconclusive",
with about how many rows would decide. A rung that breaks a guard is blocked, whatever it gains.

A step up is a one-sided decision: the interval has ALPHA / rungs outside on each side, so a ladder of equal rungs steps
up with a probability of at most ALPHA (Bonferroni over the planned rungs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from finetune_trainer.statistics.differences import ALPHA, FEWEST_ROWS, Difference, too_few
from finetune_trainer.statistics.intervals import Floats, clopper_pearson, independent_groups, residual_error, totals
from finetune_trainer.statistics.paired import Paired, difference
from finetune_trainer.statistics.quantiles import t_quantile

SELECT_SHARE = 2
"""Validation rows for each row of the select half."""


class Outcome(StrEnum):
    """What is decided about a rung; the words that users see."""

    taken = "taken"
    no_gain = "noGain"
    inconclusive = "inconclusive"
    blocked = "blocked"


@dataclass(frozen=True, kw_only=True)
class Decision:
    outcome: Outcome
    reason: str
    gain: float | None = None
    """Signed so that more is better; low and high: of its interval."""
    low: float | None = None
    high: float | None = None
    minimum_detectable: float | None = None
    rows: int = 0
    """Of the select half, or of all folds."""
    rows_needed: int | None = None
    """Validation rows that would decide an inconclusive rung."""


def variance_of(folds: int) -> float:
    """By which the variance of a difference over all folds exceeds that of as many rows which one pair of models was
    measured on: the models of two folds have most of their training rows in common. 1 + folds / (folds - 1), after
    Nadeau and Bengio (Machine Learning 52 (2003) 239); 1 without folds."""
    return 1 + folds / (folds - 1) if folds else 1.0


def compared(paired: Paired, *, rungs: int, folds: int = 0) -> Difference:
    """The rung minus the best so far. rungs: how many are planned."""
    return difference(paired, comparisons=rungs, alpha=2 * ALPHA, variance=variance_of(folds))


def decide(change: Difference, *, min_gain: float, blocked: str = "", folds: int = 0) -> Decision:
    """blocked: which guard the rung breaks, in words."""
    found = _improvement(change)
    told = {"minimum_detectable": change.minimum_detectable, "rows": change.rows}
    if found is None:
        outcome = Outcome.blocked if blocked else Outcome.inconclusive
        why = blocked or f"{change.reason} to compare"
        needed = SELECT_SHARE * FEWEST_ROWS if change.rows < FEWEST_ROWS else None
        return Decision(outcome=outcome, reason=why, rows=change.rows, rows_needed=needed)
    gain, low, high = found
    values = {"gain": gain, "low": low, "high": high, **told}
    if blocked:
        return _decision(Outcome.blocked, blocked, values)
    if low > 0 and gain >= min_gain:
        return _decision(Outcome.taken, f"gains {gain:+.3g}, at least {min_gain:g}, and surely more than zero", values)
    if low > 0:
        return _decision(Outcome.no_gain, f"gains {gain:+.3g}, less than the minimum of {min_gain:g}", values)
    matters = max(min_gain, change.margin)
    detectable = change.minimum_detectable
    if high < matters:
        return _decision(Outcome.no_gain, f"gains at most {high:+.3g}, less than {matters:g}", values)
    if detectable is not None and detectable <= matters:
        return _decision(Outcome.no_gain, f"a gain of {matters:g} would have shown on these rows", values)
    needed = _rows_needed(change.rows / variance_of(folds), detectable, matters)
    shown = "" if detectable is None else f"; {change.rows:,} rows show no gain below {detectable:.2g}"
    more = f", about {needed:,} validation rows would show {matters:g}" if needed else ""
    return _decision(Outcome.inconclusive, f"gains {gain:+.3g}, which may be chance{shown}{more}", values, needed)


def _improvement(change: Difference) -> tuple[float, float, float] | None:
    """(value, low, high), signed so that more is better; None where there is no interval."""
    if change.difference is None or change.low is None or change.high is None:
        return None
    if change.measure.higher_is_better:
        return change.difference, change.low, change.high
    return -change.difference, -change.high, -change.low


def _decision(outcome: Outcome, reason: str, values: dict[str, float | None], needed: int | None = None) -> Decision:
    return Decision(outcome=outcome, reason=reason, rows_needed=needed, **values)  # type: ignore[arg-type]


def _rows_needed(rows: float, detectable: float | None, matters: float) -> int | None:
    """Validation rows. The minimum detectable effect falls with the square root of those of their select half, which
    `rows` says as much as; rounded up to two digits."""
    if detectable is None or matters <= 0:
        return None
    needed = SELECT_SHARE * rows * (detectable / matters) ** 2
    unit = int(10 ** max(0, math.floor(math.log10(max(1.0, needed))) - 1))
    return math.ceil(needed / unit) * unit


def mean_of(values: Floats, weights: Floats) -> float:
    """The figure of a model: NaN without rows."""
    total = float(weights.sum())
    return float(values.sum()) / total if total else math.nan


def reaches(pair: Paired, target: float | None, *, folds: int = 0) -> bool:
    """Whether the tuned model reaches the target with a one-sided confidence of 1 - ALPHA."""
    if target is None or not pair.rows:
        return False
    total = float(pair.tuned_weights.sum())
    shares = totals(pair.groups, pair.tuned_weights)[0] / total
    equal = independent_groups(shares)
    if too_few(rows=pair.rows, groups=pair.group_count, equal=equal):
        return False
    higher = pair.measure.higher_is_better
    value, variance = mean_of(pair.tuned, pair.tuned_weights), variance_of(folds)
    if pair.binary and not pair.grouped:
        count = math.floor(pair.rows / variance)
        low, high = clopper_pearson(round(value * count), count, alpha=2 * ALPHA)
    else:
        each = (pair.tuned - value * pair.tuned_weights) / total
        half = t_quantile(1 - ALPHA, equal - 1) * residual_error(totals(pair.groups, each)[0], shares)
        half *= math.sqrt(variance)
        low, high = value - half, value + half
    return low >= target if higher else high <= target
