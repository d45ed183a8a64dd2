"""Ladders over tasks whose truth is known: thousands of runs of the real decisions in seconds, and nothing trains.

A row is right or wrong by the base model and by each rung; a rung turns some of the base model's wrong rows right
(gained) and some of its right rows wrong (lost). All rungs are measured on the same rows, as in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.ladder.climb import Climb, Done, Run, Stop, StopReason
from finetune_trainer.ladder.decision import Decision, compared, decide, variance_of
from finetune_trainer.ladder.ledger import Ledger
from finetune_trainer.ladder.rules import Choice
from finetune_trainer.ladder.rungs import BASE, rung
from finetune_trainer.statistics.differences import (
    ALPHA,
    INDEPENDENT,
    Difference,
    Method,
    Verdict,
    minimum_detectable,
)
from finetune_trainer.statistics.intervals import tango
from finetune_trainer.statistics.paired import ACCURACY, Paired
from finetune_trainer.statistics.quantiles import t_quantile

Rows = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung's truth."""

    method: str
    gain: float = 0.0
    """Over the base model, in points of accuracy."""
    cost: float = 1.0
    estimate: float | None = None
    """Upper estimate; None: the cost."""
    blocked: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    rungs: tuple[Rung, ...]
    rows: int = 1000
    """Of the select half."""
    accuracy: float = 0.7
    """Of the base model."""
    disagreement: float = 0.2
    """Of each rung with the base model."""
    min_gain: float = 0.01
    budget: float | None = None
    """GPU hours."""
    money: float | None = None
    price: float = 1.0
    """Of a GPU hour."""
    folds: int = 0
    """Of cross-fitting."""


@dataclass(frozen=True, kw_only=True)
class Climbed:
    best: str
    stop: StopReason
    spent: float
    climb: Climb
    overrun: float
    """What the rung that ran last cost beyond its reservation."""


def simulate(task: Task, *, runs: int, seed: int) -> list[Climbed]:
    random = np.random.default_rng(seed)
    return climbs(task, [_measured(task, random) for _ in range(runs)])


def climbs(task: Task, measured: Sequence[dict[str, Rows]]) -> list[Climbed]:
    """Of what base model and rungs got right in each run."""
    limits = Limits.of(task, measured)
    return [_climb(task, each, limits) for each in measured]


def share(climbed: Sequence[Climbed], *methods: str) -> float:
    """Of the runs that ended with one of these as the best."""
    return sum(each.best in methods for each in climbed) / len(climbed)


def _measured(task: Task, random: np.random.Generator) -> dict[str, Rows]:
    base = random.random(task.rows) < task.accuracy
    found = {BASE: base}
    for each in task.rungs:
        change = max(task.disagreement, abs(each.gain))
        gained, lost = (change + each.gain) / 2, (change - each.gain) / 2
        fate = random.random(task.rows)
        turned = np.where(base, fate < lost / task.accuracy, fate < gained / (1 - task.accuracy))
        found[each.method] = base ^ turned
    return found


@dataclass(frozen=True)
class Limits:
    """Intervals of all comparisons of a simulation, computed at once: a thousand times faster than one by one."""

    rows: int
    known: dict[tuple[int, int], tuple[float, float]]
    alpha: float
    folds: int = 0

    @classmethod
    def of(cls, task: Task, measured: Sequence[dict[str, Rows]]) -> Limits:
        alpha = 2 * ALPHA / len(task.rungs)
        names = [BASE, *(each.method for each in task.rungs)]
        pairs = [(first, second) for place, second in enumerate(names) for first in names[:place]]
        counts = sorted({counted(each[first], each[second]) for each in measured for first, second in pairs})
        gained, lost = np.array(counts, np.float64).T
        quantile = t_quantile(1 - alpha / 2, INDEPENDENT)
        more = variance_of(task.folds)
        low, high = tango(gained / more, lost / more, np.full(len(counts), task.rows / more), quantile=quantile)
        known = dict(zip(counts, zip(low.tolist(), high.tolist(), strict=True), strict=True))
        return cls(task.rows, known, alpha, task.folds)

    def change(self, gained: int, lost: int) -> Difference:
        low, high = self.known[gained, lost]
        disagreement = (gained + lost) / self.rows
        return Difference(
            measure=ACCURACY, base=None, tuned=None, difference=(gained - lost) / self.rows, low=low, high=high,
            minimum_detectable=minimum_detectable(
                disagreement, self.rows / variance_of(self.folds), alpha=self.alpha
            ), p_value=None,
            rows=self.rows, groups=self.rows, method=Method.tango, verdict=Verdict.inconclusive, margin=ACCURACY.margin,
        )  # fmt: skip


def counted(before: Rows, after: Rows) -> tuple[int, int]:
    """(rows gained, rows lost)"""
    return int((after & ~before).sum()), int((before & ~after).sum())


def _climb(task: Task, measured: dict[str, Rows], limits: Limits) -> Climbed:
    truth = {each.method: each for each in task.rungs}
    estimates = {each.method: each.cost if each.estimate is None else each.estimate for each in task.rungs}
    choice = Choice(rule="simulated", reason="", rungs=tuple(rung(method) for method in truth))
    ledger = Ledger(budget=task.budget, money=task.money, price=task.price)
    climb = Climb.of(choice, estimates, min_gain=task.min_gain, ledger=ledger)
    overrun = 0.0
    while isinstance(step := climb.next(), Run):
        method = step.rung.method
        climb = climb.started(step.rung)
        overrun = max(0.0, truth[method].cost - climb.ledger.reserved)
        before, after = measured[climb.best], measured[method]
        change = limits.change(*counted(before, after))
        decision = decide(change, min_gain=task.min_gain, blocked=truth[method].blocked, folds=task.folds)
        cost = truth[method].cost
        climb = climb.ended(Done(rung=step.rung, cost=cost, money=cost * task.price, decision=decision))
    assert isinstance(step, Stop)
    return Climbed(best=climb.best, stop=step.reason, spent=climb.ledger.spent, climb=climb, overrun=overrun)


def decided(
    gained: int, lost: int, rows: int, *, rungs: int, min_gain: float, blocked: str = "", folds: int = 0
) -> Decision:
    """The decision about counts of rows, as a run comes to it."""
    base, tuned = np.zeros(rows), np.zeros(rows)
    tuned[:gained] = 1
    base[gained : gained + lost] = 1
    change = compared(Paired.scores(base=base, tuned=tuned), rungs=rungs, folds=folds)
    return decide(change, min_gain=min_gain, blocked=blocked, folds=folds)
