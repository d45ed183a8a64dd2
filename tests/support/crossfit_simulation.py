"""Cross-fitted ladders whose rungs really learn: ridge regression on made-up rows, thousands of runs in seconds.

Rungs see different features that tell as much about the label, so in truth they are equal. The base model is right
with a probability of its own: that of the rungs, less the gain that the task has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.ladder.rungs import BASE
from tests.support.ladder_simulation import Climbed, Rows, Rung, Task, climbs

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """A task with few rows."""

    rows: int
    features: int = 20
    """Of each rung, of which one is informative: many for few rows overfit, and fit differently to each fold."""
    signal: float = 0.7
    """Distance of the classes' means from 0, in standard deviations."""
    gain: float = 0.0
    """Of all rungs over the base model."""
    rungs: tuple[str, ...] = ("lora", "full")
    folds: int = 5


def simulate(task: Learning, *, runs: int, seed: int) -> list[Climbed]:
    """Decisions on all rows, each measured by the fit that did not see it."""
    random = np.random.default_rng(seed)
    learned = [_learned(task, random) for _ in range(runs)]
    return climbs(_task(task, rows=task.rows), _with_base(task, learned, random))


def simulate_split(task: Learning, *, held_out: float, runs: int, seed: int) -> list[Climbed]:
    """The same rungs, decided on the select half of a share of the rows."""
    random = np.random.default_rng(seed)
    learned = [_learned(task, random) for _ in range(runs)]
    rows = max(1, round(task.rows * held_out / 2))
    few = [{name: right[:rows] for name, right in each.items()} for each in learned]
    split = replace(task, rows=rows, folds=0)
    return climbs(_task(split, rows=rows), _with_base(split, few, random, accuracy=_accuracy(learned)))


def _task(task: Learning, *, rows: int) -> Task:
    return Task(rungs=tuple(Rung(method=method) for method in task.rungs), rows=rows, min_gain=0.0, folds=task.folds)


def _accuracy(learned: list[dict[str, Rows]]) -> float:
    return float(np.mean([right for each in learned for right in each.values()]))


def _with_base(
    task: Learning, learned: list[dict[str, Rows]], random: np.random.Generator, accuracy: float | None = None
) -> list[dict[str, Rows]]:
    reached = _accuracy(learned) if accuracy is None else accuracy
    return [{BASE: random.random(task.rows) < reached - task.gain, **each} for each in learned]


def _learned(task: Learning, random: np.random.Generator) -> dict[str, Rows]:
    labels = random.integers(0, 2, task.rows) * 2.0 - 1
    fold = random.permutation(task.rows) % task.folds
    found = {}
    for method in task.rungs:
        rows = random.normal(size=(task.rows, task.features))
        rows[:, 0] += task.signal * labels
        found[method] = _cross_fitted(rows, labels, fold)
    return found


def _cross_fitted(rows: Floats, labels: Floats, fold: NDArray[np.int64]) -> Rows:
    """Which rows are right, by the fit on all other folds."""
    predicted = np.empty(len(rows))
    for index in range(int(fold.max()) + 1):
        inside = fold == index
        seen, told = rows[~inside], labels[~inside]
        weights = np.linalg.solve(seen.T @ seen + np.eye(rows.shape[1]), seen.T @ told)
        predicted[inside] = rows[inside] @ weights
    return (predicted > 0) == (labels > 0)
