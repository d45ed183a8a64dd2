"""Tasks in sequence: what is left of earlier ones.

scores (T, T): row i is measured after training task i, column j on task j; higher is better. ACC, BWT and FWT are those
of Lopez-Paz and Ranzato 2017 (arXiv:1706.08840), forgetting that of Chaudhry et al. 2018 (arXiv:1801.10112): from the
best score that a task ever had, so forgetting ≥ -BWT always.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class Continual:
    acc: float
    """Mean score over all tasks at the end."""
    bwt: float | None
    """Backward transfer: mean change of earlier tasks from just after their training to the end. None with one task."""
    fwt: float | None
    """Forward transfer: mean score of a task just before its training, above the untouched base. None without base."""
    forgetting: float | None
    """Mean fall of earlier tasks from their best."""


def continual(scores: ArrayLike, *, base: ArrayLike | None = None) -> Continual:
    """base (T,): scores of the untouched model. ValueError for a matrix that is not square, or not finite where it is
    used: on and below the diagonal, and just above it for FWT."""
    matrix = np.asarray(scores, np.float64)
    tasks = len(matrix)
    if matrix.shape != (tasks, tasks) or not tasks:
        raise ValueError(f"scores of {tasks} tasks after each of them are needed, not an array of shape {matrix.shape}")
    if not np.isfinite(matrix[np.tril_indices(tasks)]).all():
        raise ValueError("a score on or below the diagonal is missing")
    last = matrix[-1]
    acc = float(last.mean())
    if tasks == 1:
        return Continual(acc=acc, bwt=None, fwt=None, forgetting=None)
    earlier = slice(0, tasks - 1)
    best = np.array([matrix[j : tasks - 1, j].max() for j in range(tasks - 1)])
    before = np.diagonal(matrix, offset=1)
    known = base is not None and np.isfinite(before).all()
    return Continual(
        acc=acc,
        bwt=float((last[earlier] - np.diagonal(matrix)[earlier]).mean()),
        fwt=float((before - np.asarray(base, np.float64)[1:]).mean()) if known else None,
        forgetting=float((best - last[earlier]).mean()),
    )
