"""Two halves of the validation rows of a ladder: one tunes a rung (best checkpoint, early stopping), the other selects
among rungs. Groups stay together, and content decides, so every rung has the same halves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .corpus import Corpus


def selects(groups: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(rows,): whether a row is in the select half, by the digest of its group. The digest is mixed first (splitmix64),
    because a split by content may have used its order."""
    with np.errstate(over="ignore"):
        mixed = groups + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(63), np.bool_)


def select_half(validation: Corpus | None) -> Corpus | None:
    """The other one; None without groups, by which it is decided."""
    if validation is None or validation.marks is None:
        return None
    return validation.take(np.flatnonzero(selects(validation.marks.groups)))


def tune_half(validation: Corpus) -> Corpus:
    """All rows where the half would be empty."""
    groups = validation.marks.groups if validation.marks else np.arange(len(validation), dtype=np.uint64)
    rows = np.flatnonzero(~selects(groups))
    return validation.take(rows) if len(rows) else validation
