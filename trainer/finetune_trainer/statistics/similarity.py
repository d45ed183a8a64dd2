"""How alike two representations of the same tokens are: unbiased CKA, from sums that add up over batches and ranks.

x (n, d1), y (n, d2): states of the same n tokens. With kernels K = XXᵀ and L = YYᵀ whose diagonals are set to zero

    HSIC₁ = [tr(KL) + 1ᵀK1 · 1ᵀL1 / ((n-1)(n-2)) - 2/(n-2) · 1ᵀKL1] / (n(n-3))
    CKA = HSIC₁(K, L) / √(HSIC₁(K, K) · HSIC₁(L, L))

(Song et al. 2012; Nguyen et al. 2021, arXiv:2010.15327). All terms follow from sums over tokens of x, y, their squared
norms and outer products, so no (n, n) matrix is needed. Unbiased: 0 on average for independent states, and sometimes a
little below, where the usual CKA is 0.86 for 100 tokens of 576 dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.statistics.intervals import Floats

FEWEST = 1024
"""Tokens, from which on a CKA is reported."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Of paired states. `a + b` is of the tokens of both, `a - b` of those of `a` without those of `b`."""

    count: int
    cross: Floats
    """(d1, d2): Σ x yᵀ"""
    left: Floats
    right: Floats
    """Σ x, Σ y"""
    norms: Floats
    """(3,): Σ |x|², Σ |y|², Σ |x|² |y|²"""
    left_by_norm: Floats
    right_by_norm: Floats
    """Σ x |y|², Σ y |x|²"""

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Sums:
        q, r = (x**2).sum(axis=1), (y**2).sum(axis=1)
        return cls(len(x), x.T @ y, x.sum(axis=0), y.sum(axis=0), np.array([q.sum(), r.sum(), q @ r]), x.T @ r, y.T @ q)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.count + other.count, *(a + b for a, b in zip(self._arrays, other._arrays, strict=True)))

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.count - other.count, *(a - b for a, b in zip(self._arrays, other._arrays, strict=True)))

    @property
    def _arrays(self) -> tuple[Floats, ...]:
        return self.cross, self.left, self.right, self.norms, self.left_by_norm, self.right_by_norm

    @property
    def hsic(self) -> float:
        """HSIC₁. ValueError for fewer than four tokens."""
        n, (q, r, qr) = self.count, self.norms
        if n < 4:
            raise ValueError(f"unbiased HSIC needs four tokens, not {n}")
        trace = float((self.cross**2).sum() - qr)
        ones = float((self.left @ self.left - q) * (self.right @ self.right - r))
        both = float(
            self.left @ self.cross @ self.right - self.left_by_norm @ self.left - self.right_by_norm @ self.right + qr
        )
        return (trace + ones / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3))


@dataclass(frozen=True, eq=False)
class Paired:
    """The three sums of a CKA. Sums that are added must be of states from which the same constants were subtracted: the
    value does not depend on the constants, but rounding does, so take the mean of the first batch."""

    across: Sums
    first: Sums
    second: Sums

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Paired:
        return cls(Sums.of(x, y), Sums.of(x, x), Sums.of(y, y))

    def __add__(self, other: Paired) -> Paired:
        return Paired(self.across + other.across, self.first + other.first, self.second + other.second)

    def __sub__(self, other: Paired) -> Paired:
        return Paired(self.across - other.across, self.first - other.first, self.second - other.second)

    @property
    def cka(self) -> float:
        """NaN where one side is constant."""
        scale = self.first.hsic * self.second.hsic
        return self.across.hsic / math.sqrt(scale) if scale > 0 else math.nan


def with_error(parts: Sequence[Paired]) -> tuple[float, float]:
    """(CKA of all parts, its standard error by leaving one part out at a time). Parts: groups of documents, whose
    tokens depend on each other; three or more."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    without = np.array([(whole - part).cka for part in parts])
    spread = float(((without - without.mean()) ** 2).sum())
    return whole.cka, math.sqrt((len(parts) - 1) / len(parts) * spread)


def permuted(x: Floats, y: Floats, orders: Sequence[NDArray[np.int64]]) -> list[float]:
    """CKA of x with y in each of these orders (n,): what chance and the structure of the documents leave. One product
    for all, by the kernels themselves: (n, n) in memory."""
    n = len(x)
    kernels = [side @ side.T for side in (x - x.mean(axis=0), y - y.mean(axis=0))]
    for kernel in kernels:
        np.fill_diagonal(kernel, 0)
    k, other = kernels
    rows, columns = k.sum(axis=1), other.sum(axis=1)
    ones = float(rows.sum() * columns.sum())

    def hsic(trace: float, both: float, ones: float) -> float:
        return (trace + ones / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3))

    scale = math.sqrt(
        hsic(float((k**2).sum()), float(rows @ rows), float(rows.sum() ** 2))
        * hsic(float((other**2).sum()), float(columns @ columns), float(columns.sum() ** 2))
    )
    return [
        hsic(float((k * other[np.ix_(order, order)]).sum()), float(rows @ columns[order]), ones) / scale
        for order in orders
    ]


def coordinates(states: Floats, centre: Floats) -> Floats:
    """(n, min(n, d)): states without `centre` as numbers that have the same inner products."""
    centred = states - centre
    if centred.shape[1] <= len(centred):
        return centred
    triangle: Floats = np.linalg.qr(centred.T)[1]
    return triangle.T
