"""Base model against tuned model: every number twice, its change, and whether the change is good.

A change that is too small to see is called `same`. For accuracy that is one within 1.96 standard errors of the
difference of two proportions (Agresti and Caffo 2000: one success and one failure added to each), as if the models had
been asked different questions, which errs on the careful side. For losses and bits per byte it is below half a percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from finetune_api.status import Evaluation, Scores

Kind = Literal["test", "validation", "slice", "general"]

_VISIBLE = 0.005
"""Smallest relative change of a loss that is called one."""


class Metric(StrEnum):
    accuracy = "accuracy"
    loss = "loss"
    bits_per_byte = "bits per byte"


class Verdict(StrEnum):
    better = "better"
    worse = "worse"
    same = "about the same"
    unknown = "not measured"


@dataclass(frozen=True)
class Change:
    """One number before and after."""

    metric: Metric
    base: float | None
    tuned: float | None
    rows: int

    @property
    def delta(self) -> float | None:
        return None if self.base is None or self.tuned is None else self.tuned - self.base

    @property
    def verdict(self) -> Verdict:
        if self.delta is None or self.base is None or self.tuned is None:
            return Verdict.unknown
        if not self._visible(self.base, self.tuned):
            return Verdict.same
        rises = self.delta > 0
        return Verdict.better if rises == (self.metric is Metric.accuracy) else Verdict.worse

    def _visible(self, base: float, tuned: float) -> bool:
        if self.metric is not Metric.accuracy:
            return abs(tuned - base) >= max(_VISIBLE * abs(base), 1e-12)
        shares = [(share * self.rows + 1) / (self.rows + 2) for share in (base, tuned)]
        error = math.sqrt(sum(share * (1 - share) / (self.rows + 2) for share in shares))
        return abs(shares[1] - shares[0]) >= 1.96 * error


@dataclass(frozen=True)
class Row:
    """One data set."""

    name: str
    kind: Kind
    rows: int
    tokens: int
    changes: tuple[Change, ...]
    """Of accuracy, loss and bits per byte, in this order, those that were measured."""

    def change(self, metric: Metric) -> Change | None:
        return next((c for c in self.changes if c.metric is metric), None)

    @property
    def main(self) -> Change | None:
        """What this data set is judged by: accuracy where there are labels, bits per byte for general text."""
        order = (Metric.bits_per_byte,) if self.kind == "general" else (Metric.accuracy,)
        return next((c for metric in (*order, Metric.loss) if (c := self.change(metric))), None)

    @property
    def verdict(self) -> Verdict:
        return self.main.verdict if self.main else Verdict.unknown


def compare(evaluation: Evaluation) -> tuple[Row, ...]:
    """Test, validation, the slices in their order, general text: those that were measured at all."""
    base, tuned = evaluation.base, evaluation.tuned
    found = [
        _row("test", "test", base.test, tuned.test),
        _row("validation", "validation", base.validation, tuned.validation),
        *(_row(s.name, "slice", s.base, s.tuned) for s in evaluation.slices),
        _row("general text", "general", base.general, tuned.general),
    ]
    return tuple(row for row in found if row is not None)


def headline(rows: tuple[Row, ...]) -> Row | None:
    """The data set that the run is judged by: test, else validation."""
    return next((r for kind in ("test", "validation") for r in rows if r.kind == kind), None)


def number(metric: Metric, value: float | None) -> str:
    """As people read it: 88.3 %, 1.234."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value * 100:.1f} %" if metric is Metric.accuracy else f"{value:.3f}"


def difference(change: Change, *, unit: bool = True) -> str:
    """+26.2 points, −0.395. Empty where there is nothing to compare."""
    if change.delta is None or not math.isfinite(change.delta):
        return ""
    if change.metric is Metric.accuracy:
        return f"{change.delta * 100:+.1f}{' points' if unit else ''}".replace("-", "−")
    return f"{change.delta:+.3f}".replace("-", "−")


def sentences(rows: tuple[Row, ...]) -> tuple[str, ...]:
    """The verdict in words: what was won, what it did to the slices, what it cost elsewhere."""
    return tuple(_sentences(rows))


def _sentences(rows: tuple[Row, ...]) -> Iterator[str]:
    if (judged := headline(rows)) and judged.main:
        yield f"On the {judged.name} rows the tuned model is {_words(judged.main)}."
    slices = [r for r in rows if r.kind == "slice"]
    parts = [
        f"{verdict} on {', '.join(names)}"
        for verdict in (Verdict.better, Verdict.same, Verdict.worse)
        if (names := [r.name for r in slices if r.verdict is verdict])
    ]
    if parts:
        yield f"Of the slices it is {'; '.join(parts)}."
    for row in rows:
        if row.kind == "general" and row.main:
            yield f"On general text it is {_words(row.main)}."


def _words(change: Change) -> str:
    if change.verdict is Verdict.unknown:
        return "not compared with the base model"
    values = f"{number(change.metric, change.base)} → {number(change.metric, change.tuned)}"
    return f"{change.verdict}: {change.metric} {values} ({difference(change)})"


def _row(name: str, kind: Kind, base: Scores | None, tuned: Scores | None) -> Row | None:
    known = tuned or base
    if known is None:
        return None
    changes = [
        Change(Metric.accuracy, base.accuracy if base else None, tuned.accuracy if tuned else None, known.rows),
        Change(Metric.loss, base.loss if base else None, tuned.loss if tuned else None, known.rows),
        Change(
            Metric.bits_per_byte,
            base.bits_per_byte if base else None,
            tuned.bits_per_byte if tuned else None,
            known.rows,
        ),
    ]
    measured = tuple(c for c in changes if c.base is not None or c.tuned is not None)
    return Row(name, kind, known.rows, known.tokens, measured)
