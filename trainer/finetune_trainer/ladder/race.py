"""The race of learning rates within a rung: successive halving.

All candidates train the same schedule up to a first mark; the better half continues to the next mark, the best one to
the end. A candidate stops at a mark with a checkpoint, and resumes from it: no step is made twice, and the winner's
weights are those of a run that had its rate from the beginning.

    step = next_leg((1.0, 0.33, 3.0), {(0, 0): 1.20, (1, 0): 1.31})    # Leg(candidate=2, until=0.1)

A candidate that diverges is out, however late: the best of those that came as far as it did continues, or of all others
if none of these is left.

Candidates are compared by their best validation loss so far, on the half of the rows that tunes; whether the rung is
taken is decided on the other half (decision). Nothing is tested here: a wrong choice costs a part of the gain, and no
error of the ladder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.plan import Trial

MARKS = (0.1, 0.3)
"""Shares of the steps after which candidates are compared. A run evaluates after every tenth by default."""

Losses = Mapping[tuple[int, int], float]
"""(candidate, mark) → validation loss there; infinite for a candidate that diverged on its way there. Of the end, after
the last mark, nothing else is noted."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What is to run next."""

    candidate: int
    mark: int | None
    """Index of the mark to stop at; None: to the end."""

    @property
    def until(self) -> float | None:
        """Share of the steps; None: to the end."""
        return None if self.mark is None else MARKS[self.mark]


def next_leg(factors: Sequence[float], losses: Losses) -> Leg | None:
    """factors: multiples of the default rate. None: all candidates diverged."""
    diverged = {candidate for (candidate, _), loss in losses.items() if not math.isfinite(loss)}
    left = list(range(len(factors)))
    for mark in range(len(MARKS)):
        if len(left) <= 1:
            break
        for candidate in left:
            if (candidate, mark) not in losses:
                return Leg(candidate=candidate, mark=mark)
        ranked = sorted(left, key=lambda each, at=mark: (losses[each, at], abs(math.log(factors[each]))))  # type: ignore[misc]
        kept, healthy = ranked[: _kept(len(left), mark)], [each for each in ranked if each not in diverged]
        left = [each for each in kept if each in healthy] or healthy[:1]
    return Leg(candidate=left[0], mark=None) if left and left[0] not in diverged else None


def legs(count: int) -> list[tuple[int, float]]:
    """(candidates, share of the steps) of each stage; one of them trains the last one."""
    found, begin, left = [], 0.0, count
    for mark, end in enumerate(MARKS):
        if left == 1:
            break
        found.append((left, end - begin))
        begin, left = end, _kept(left, mark)
    return [*found, (1, 1.0 - begin)]


def cost(count: int) -> float:
    """Of a race of so many candidates, as a multiple of one run: 1.4 for three. One that diverges late costs more."""
    return sum(candidates * share for candidates, share in legs(count))


def runs(count: int) -> int:
    """Number of times that processes start."""
    return sum(candidates for candidates, _ in legs(count))


def pause_of(trial: Trial | None, *, total: int, every: int) -> int | None:
    """The step after which a trial pauses: the first one after its share of `total` at which validation rows are
    measured anyway, `every` so many steps. None: it does not."""
    if trial is None or trial.until is None:
        return None
    return min(total, every * math.ceil(trial.until * total / every))


def _kept(candidates: int, mark: int) -> int:
    return 1 if mark == len(MARKS) - 1 else math.ceil(candidates / 2)
