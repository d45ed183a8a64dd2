"""An interval against a bound: passed, violated or inconclusive, and how many rows would decide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

MOST_ROWS = 10_000_000
"""Where more would be needed, no number is given."""


class Outcome(StrEnum):
    passed = "passed"
    violated = "violated"
    inconclusive = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a guard says. value, low and high are None where nothing was measured."""

    name: str
    """The guard's key, as users write it."""
    bound: float
    value: float | None
    low: float | None
    high: float | None
    verdict: Outcome
    rows: int = 0
    rows_needed: int | None = None
    """Rows that would decide, at the same difference and spread. None: decided, or more than a data set can have."""
    on: str = ""
    """The data set, or the figure, that decided."""
    reason: str = ""
    """Why nothing can be said."""
    within: bool = False
    """Whether the value itself keeps the bound, however sure that is."""


def at_most(name: str, *, bound: float, value: float, low: float, high: float, rows: int, on: str = "") -> Judgement:
    """A value that must not exceed the bound."""
    outcome = Outcome.passed if high <= bound else Outcome.violated if low > bound else Outcome.inconclusive
    needed = None
    if outcome is Outcome.inconclusive:
        half = high - value if value <= bound else value - low
        needed = _rows_needed(half=half, gap=abs(bound - value), rows=rows)
    return Judgement(
        name=name, bound=bound, value=value, low=low, high=high, verdict=outcome, rows=rows, rows_needed=needed, on=on,
        within=value <= bound,
    )  # fmt: skip


def at_least(name: str, *, bound: float, value: float, low: float, high: float, rows: int, on: str = "") -> Judgement:
    """A value that must reach the bound."""
    outcome = Outcome.passed if low >= bound else Outcome.violated if high < bound else Outcome.inconclusive
    needed = None
    if outcome is Outcome.inconclusive:
        half = value - low if value >= bound else high - value
        needed = _rows_needed(half=half, gap=abs(bound - value), rows=rows)
    return Judgement(
        name=name, bound=bound, value=value, low=low, high=high, verdict=outcome, rows=rows, rows_needed=needed, on=on,
        within=value >= bound,
    )  # fmt: skip


def unknown(name: str, *, bound: float, reason: str, rows: int = 0, needed: int | None = None) -> Judgement:
    return Judgement(
        name=name, bound=bound, value=None, low=None, high=None, verdict=Outcome.inconclusive, rows=rows,
        rows_needed=needed, reason=reason,
    )  # fmt: skip


def _rows_needed(*, half: float, gap: float, rows: int) -> int | None:
    """Half an interval shrinks with the square root of the rows; rounded up to two digits."""
    if gap <= 0 or not math.isfinite(half):
        return None
    needed = rows * (half / gap) ** 2
    if needed > MOST_ROWS:
        return None
    return max(rows + 1, rounded_up(needed))


def rounded_up(rows: float) -> int:
    """To two digits."""
    if rows <= 100:
        return math.ceil(rows)
    unit = int(10 ** (math.floor(math.log10(rows)) - 1))
    return math.ceil(rows / unit) * unit
