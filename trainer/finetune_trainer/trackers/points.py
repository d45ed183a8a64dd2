"""Curves and results as (step, name → number), in the names that every tracker shows.

    train/loss  train/learning_rate  train/gradient_norm  train/tokens_per_second  train/<regularization term>
    validation/loss  validation/accuracy  validation/bits_per_byte
    evaluation/<data set>/<metric>/base  …/tuned  …/difference  …/low  …/high
    guards/<guard>/value  guards/<guard>/bound

Numbers that are not finite are left out: not every tracker accepts them.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.measurements import Measurement
from finetune_trainer.report.record import AttemptRecord, CurvePoint, RunRecord, ValidationPoint

_ODD = re.compile(r"[^\w. -]")
"""Characters that MLflow does not accept in a name."""


@dataclass(frozen=True)
class Point:
    """What was measured after `step` optimizer steps."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """The end of a run: numbers by name, and facts in words (artifact, digest, verdicts of guards)."""

    step: int
    values: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


def of_curves(
    curve: Sequence[CurvePoint], validation: Sequence[ValidationPoint], *, after: int = -1
) -> Iterator[Point]:
    """Training and validation curves in the order of their steps, from the first step after `after` on."""
    points = [*map(_of_step, curve), *map(_of_validation, validation)]
    yield from sorted((each for each in points if each.values and each.step > after), key=lambda point: point.step)


def _of_step(point: CurvePoint) -> Point:
    values = {
        "train/loss": point.loss,
        "train/learning_rate": point.learning_rate,
        "train/gradient_norm": point.gradient_norm,
        "train/tokens_per_second": point.tokens_per_second,
        **{f"train/{name}": value for name, value in (point.regularization or {}).items()},
    }
    return Point(point.step, _finite(values))


def _of_validation(point: ValidationPoint) -> Point:
    scores = point.scores
    values = {"loss": scores.loss, "accuracy": scores.accuracy, "bits_per_byte": scores.bits_per_byte}
    return Point(point.step, _finite({f"validation/{name}": value for name, value in values.items()}))


def outcome_of(record: RunRecord, *, artifact: str = "", digest: str = "") -> Outcome:
    """What a run was worth, and where its artifact is. `artifact`: the URI, once it is known."""
    values: dict[str, float | None] = {}
    for each in record.measurements or record.evaluation.data:
        values |= _of_measurement(each)
    words = {"artifact": artifact, "digest": digest, "stopReason": record.stop_reason, "refused": record.refused}
    for guard in record.evaluation.guards:
        values |= {f"guards/{guard.name}/value": guard.value, f"guards/{guard.name}/bound": guard.bound}
        words[f"guards/{guard.name}"] = guard.verdict
    return Outcome(record.steps, _finite(values), {name: word for name, word in words.items() if word})


def _of_measurement(found: Measurement) -> dict[str, float | None]:
    kind = f"slice {found.name}" if found.kind == "slice" else found.name
    start = f"evaluation/{_ODD.sub('_', kind)}/{found.metric}"
    parts = {name: getattr(found, name) for name in ("base", "tuned", "difference", "low", "high")}
    return {f"{start}/{name}": value for name, value in parts.items()}


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def clock(attempts: Sequence[AttemptRecord], *, until: float) -> Callable[[int], float]:
    """When a step ended, in Unix seconds. Records have no time for each step, so that of a step is interpolated between
    start and end of its attempt; `until` is the end of an attempt that has none. Never decreases with the step."""
    marks: list[tuple[int, float]] = []
    for attempt in attempts:
        begun = _seconds(attempt.start_time)
        while marks and marks[-1][0] > attempt.first_step:  # steps that were lost and computed again
            marks.pop()
        if begun is not None:
            marks.append((attempt.first_step, begun))
            marks.append((attempt.last_step, _seconds(attempt.end_time) or until))
    steps = [step for step, _ in marks]

    def at(step: int) -> float:
        right = bisect_left(steps, step)
        if right == len(marks) or not marks:
            return until
        if right == 0:
            return marks[0][1]
        (first, begun), (last, ended) = marks[right - 1], marks[right]
        return begun + (ended - begun) * (step - first) / max(1, last - first)

    return at


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
