"""How far a tuned model's next-token distributions are from the base model's: KL(base ‖ tuned), nats per token.

On the inputs of a new task it predicts how much is forgotten elsewhere, over learning rates and methods
(arXiv:2509.04259), and needs no general text. It is a ratio of sums, like every figure here: Student's t on the totals
of groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from finetune_trainer.statistics.differences import ALPHA, Measure, too_few
from finetune_trainer.statistics.intervals import independent_groups, residual_error, totals
from finetune_trainer.statistics.quantiles import t_quantile

KL_TO_BASE = Measure(name="klToBase", higher_is_better=False, margin=0.0, unit="nats per token", judged=False)
"""Two models' divergences, each from its own base model, on the same rows."""


@dataclass(frozen=True, kw_only=True)
class PerToken:
    """low, high: of the 95 % interval, never below 0. None where there are too few rows or groups."""

    value: float
    low: float | None
    high: float | None
    rows: int
    groups: int


def per_token(nats: ArrayLike, tokens: ArrayLike, *, groups: Sequence[Hashable]) -> PerToken:
    """nats: (rows,) summed over each row's tokens; tokens: (rows,). ValueError without a token."""
    sums, weights = np.asarray(nats, np.float64), np.asarray(tokens, np.float64)
    number = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
    order = np.lexsort((weights, sums, number))  # the sums depend on it, and it on nothing else
    sums, weights, number = sums[order], weights[order], number[order]
    total = float(weights.sum())
    if not total:
        raise ValueError("no tokens")
    value, count = float(sums.sum()) / total, int(number.max()) + 1
    by_group, shares = totals(number, (sums - value * weights) / total, weights / total)
    equal = independent_groups(shares)
    if too_few(rows=len(sums), groups=count, equal=equal):
        return PerToken(value=value, low=None, high=None, rows=len(sums), groups=count)
    half = t_quantile(1 - ALPHA / 2, equal - 1) * residual_error(by_group, shares)
    return PerToken(value=value, low=max(0.0, value - half), high=value + half, rows=len(sums), groups=count)
