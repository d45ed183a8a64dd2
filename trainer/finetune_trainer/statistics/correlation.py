"""Canonical correlations of two representations of the same tokens: SVCCA and PWCCA.

Each side is centred and reduced to the directions that hold 99 % of its variance; ρ are the singular values of the
product of the two orthonormal bases. SVCCA is their mean (Raghu et al. 2017, arXiv:1706.05806); PWCCA weighs each by
how much of the centred first side its canonical variate accounts for (Morcos et al. 2018, arXiv:1806.05759).

Independent states correlate too when tokens are few: .55 on average for 2.6 tokens a direction, .27 for 10. So fewer
than 10 tokens for each direction are refused, and the value for permuted documents is reported too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.statistics.intervals import Floats

VARIANCE = 0.99
TOKENS_EACH = 10
"""Tokens for each direction."""


@dataclass(frozen=True, kw_only=True)
class Canonical:
    svcca: float
    pwcca: float


@dataclass(frozen=True, eq=False)
class Bases:
    """Both sides, reduced. x, y: (n, k1), (n, k2) orthonormal columns."""

    x: Floats
    y: Floats
    scaled: Floats
    """(k1,): by which the columns of x make up the first side."""
    right: Floats
    """(k1, d1): directions of the first side."""

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Bases:
        """x, y: (n, d) states as they are."""
        first, scaled, right = _reduced(x)
        return cls(first, _reduced(y)[0], scaled, right)

    @property
    def needed(self) -> int:
        """Tokens for correlations that mean something."""
        return TOKENS_EACH * max(int(self.x.shape[1]), int(self.y.shape[1]))

    @property
    def enough(self) -> bool:
        return len(self.x) >= self.needed

    def correlations(self, order: NDArray[np.int64] | None = None) -> Canonical:
        """With the tokens of y in this order (n,). ValueError where there are too few tokens."""
        if not self.enough:
            raise ValueError(f"canonical correlations need {self.needed} tokens here, not {len(self.x)}")
        other = self.y if order is None else self.y[order]
        turn, rho, _ = np.linalg.svd(self.x.T @ other, full_matrices=False)
        rho = np.minimum(rho, 1.0)
        weights = np.abs((turn.T * self.scaled) @ self.right).sum(axis=1)
        return Canonical(svcca=float(rho.mean()), pwcca=float(weights @ rho / weights.sum()))


def null(bases: Bases, orders: Sequence[NDArray[np.int64]]) -> Canonical:
    """Means over permutations."""
    found = [bases.correlations(order) for order in orders]
    return Canonical(
        svcca=float(np.mean([each.svcca for each in found])), pwcca=float(np.mean([each.pwcca for each in found]))
    )


def _reduced(states: Floats) -> tuple[Floats, Floats, Floats]:
    """(orthonormal columns (n, k), their scales (k,), directions (k, d)), the fewest that hold the variance."""
    centred = states - states.mean(axis=0)
    squares, vectors = np.linalg.eigh(centred.T @ centred)
    squares, right = np.maximum(squares[::-1], 0), vectors.T[::-1]
    held = np.cumsum(squares) / max(float(squares.sum()), 1e-300)
    kept = min(int(np.searchsorted(held, VARIANCE)) + 1, int((squares > 1e-12 * squares[0]).sum()) or 1)
    values = np.sqrt(np.maximum(squares[:kept], 1e-300))
    return centred @ right[:kept].T / values, values, right[:kept]
