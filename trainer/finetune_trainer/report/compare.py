"""Base model against tuned model in words: every number twice, its change, the interval of the change, the verdict.

Verdicts and intervals come with the measurements (`statistics.paired`); nothing is judged here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finetune_api.measurements import DataKind, Measurement, Metric
from finetune_api.verdicts import Verdict

METRICS: tuple[Metric, ...] = ("accuracy", "loss", "bitsPerByte")
WORDS: dict[Metric, str] = {"accuracy": "accuracy", "loss": "loss", "bitsPerByte": "bits per byte"}
VERDICTS: tuple[Verdict, ...] = ("better", "worse", "equivalent", "inconclusive")

_ORDER: tuple[DataKind, ...] = ("test", "validation", "slice", "task", "general")


@dataclass(frozen=True)
class Row:
    """One data set."""

    name: str
    kind: DataKind
    rows: int
    groups: int
    changes: tuple[Measurement, ...]
    """By each metric that was measured, the main one first."""
    part: bool = False
    """A file of general text, which has a row of its own as well."""

    def change(self, metric: Metric) -> Measurement | None:
        return next((each for each in self.changes if each.metric == metric), None)

    @property
    def main(self) -> Measurement:
        """What this data set is judged by."""
        return self.changes[0]

    @property
    def verdict(self) -> Verdict | None:
        return self.main.verdict


def compare(measured: Iterable[Measurement]) -> tuple[Row, ...]:
    """Test, validation, the slices in their order, general text: those that were measured at all."""
    found: dict[tuple[DataKind, str], list[Measurement]] = {}
    for each in measured:
        found.setdefault((each.kind, each.name), []).append(each)
    rows = [
        Row(_shown(kind, name), kind, each[0].rows, each[0].groups, tuple(each), part="/" in name)
        for (kind, name), each in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: _ORDER.index(row.kind)))


def _shown(kind: DataKind, name: str) -> str:
    """general/wiki is general text: wiki."""
    return "general text" + ": ".join(["", *name.split("/", 1)[1:]]) if kind == "general" else name


def headline(rows: tuple[Row, ...]) -> Row | None:
    """The data set that the run is judged by: test, else validation."""
    return next((r for kind in ("test", "validation") for r in rows if r.kind == kind), None)


def number(metric: Metric, value: float | None) -> str:
    """As people read it: 88.3 %, 1.234."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value * 100:.1f} %" if metric == "accuracy" else f"{value:.3f}"


def difference(change: Measurement, *, unit: bool = True) -> str:
    """+26.2 points, −0.395. Empty where there is nothing to compare."""
    return _signed(change.metric, change.difference, unit=" points" if unit and change.metric == "accuracy" else "")


def interval(change: Measurement) -> str:
    """[+21.9, +30.4]; in points where the metric is a share. Empty where there is none."""
    if change.low is None or change.high is None:
        return ""
    return f"[{_signed(change.metric, change.low)}, {_signed(change.metric, change.high)}]"


def interval_or_why(change: Measurement) -> str:
    """For a table: the interval, or why there is none, as in `too few rows (12 of 20)`."""
    from finetune_trainer.statistics.differences import FEWEST_GROUPS, FEWEST_ROWS

    if (shown := interval(change)) or change.difference is None:
        return shown
    if change.rows < FEWEST_ROWS:
        return f"too few rows ({change.rows} of {FEWEST_ROWS})"
    return f"too few groups ({change.groups} of {FEWEST_GROUPS})" if change.groups < FEWEST_GROUPS else ""


def detectable(change: Measurement) -> str:
    """4.1 points, 0.012: the smallest change that these rows would have shown. Empty where that is unknown."""
    value = change.minimum_detectable
    if value is None or not math.isfinite(value):
        return ""
    return f"{value * 100:.1f} points" if change.metric == "accuracy" else f"{value:.2g}"


def _signed(metric: Metric, value: float | None, *, unit: str = "") -> str:
    if value is None or not math.isfinite(value):
        return ""
    shown = f"{value * 100:+.1f}" if metric == "accuracy" else f"{value:+.3f}"
    return f"{shown}{unit}".replace("-", "−")


def sentences(rows: tuple[Row, ...]) -> tuple[str, ...]:
    """The verdict in words: what was won, what it did to the slices, what it cost elsewhere."""
    return tuple(_sentences(rows))


def _sentences(rows: tuple[Row, ...]) -> Iterator[str]:
    if judged := headline(rows):
        yield f"On the {judged.name} rows {_words(judged.main, 'the tuned model')}."
    for kind, whose in (("slice", "slices"), ("task", "earlier tasks")):
        parts = [
            f"{verdict} on {', '.join(names)}"
            for verdict in VERDICTS
            if (names := [r.name for r in rows if r.kind == kind and r.verdict == verdict])
        ]
        if parts:
            yield f"Of the {whose} it is {'; '.join(parts)}."
    for row in rows:
        if row.kind == "general" and not row.part:
            yield f"On general text {_words(row.main, 'it')}."
    if worse := [row.name.partition(": ")[2] for row in rows if row.part and row.verdict == "worse"]:
        yield f"Of the files of general text it is worse on {', '.join(worse)}."


def _words(change: Measurement, model: str) -> str:
    if change.verdict is None or change.difference is None:
        return f"{model} is not compared with the base model"
    values = f"{number(change.metric, change.base)} → {number(change.metric, change.tuned)}"
    told = " ".join(part for part in (difference(change), interval(change)) if part)
    verdict = "equivalent to the base model" if change.verdict == "equivalent" else change.verdict
    whose = "the change" if change.verdict == "inconclusive" else model
    return f"{whose} is {verdict}: {WORDS[change.metric]} {values} ({told})"


def unseen(rows: tuple[Row, ...]) -> Iterator[tuple[str, str]]:
    """(data set, what its rows could not have shown), for those that were compared."""
    for row in rows:
        change = row.main
        counted = f"{row.groups:,} groups of {row.rows:,} rows" if row.groups < row.rows else f"{row.rows:,} rows"
        if change.tuned is None:
            continue
        if told := detectable(change):
            yield row.name, f"{counted}: a change of {WORDS[change.metric]} below {told} would mostly go unseen"
        else:
            yield row.name, f"{counted} are too few for an interval: a change cannot be distinguished from chance"
