"""Several comparisons at once. Bonferroni for intervals, which must hold together; Holm for p-values, which is never
less powerful (Holm, Scandinavian Journal of Statistics 6 (1979) 65)."""

from __future__ import annotations

from collections.abc import Sequence


def bonferroni(alpha: float, comparisons: int) -> float:
    """The share of error left to each."""
    return alpha / max(1, comparisons)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values, in the order given. Rejecting those below alpha errs in a family with at most alpha."""
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)
