"""Quantiles of the normal, Student's t and the beta distribution, to about 1e-10.

The regularised incomplete beta function is the continued fraction of Abramowitz and Stegun 26.5.8, evaluated by the
modified Lentz method (Thompson and Barnett 1986); its quantile is found by bisection, which cannot diverge. Student's t
follows from it (Abramowitz and Stegun 26.7.1). The normal quantile is the standard library's (Wichura 1988, AS 241).
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_TINY = 1e-300
_LARGE = 1e8
"""Degrees of freedom from which Student's t is the normal distribution to ten digits."""


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def normal_quantile(p: float) -> float:
    return _NORMAL.inv_cdf(p)


def t_cdf(x: float, df: float) -> float:
    if df >= _LARGE:
        return normal_cdf(x)
    tail = 0.5 * beta_cdf(df / (df + x * x), df / 2, 0.5)
    return tail if x < 0 else 1 - tail


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """Of Student's t with df degrees of freedom; 0 < p < 1, df > 0."""
    if df >= _LARGE:
        return normal_quantile(p)
    if p == 0.5:
        return 0.0
    if p < 0.5:
        return -t_quantile(1 - p, df)
    share = beta_quantile(2 * (1 - p), df / 2, 0.5)  # df / (df + t²)
    return math.sqrt(df * (1 - share) / share)


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1.0 - beta_cdf(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    return front * _fraction(x, a, b) / a


@lru_cache(maxsize=4096)
def beta_quantile(p: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X ≤ k) of n draws, each a success with probability p."""
    return 1.0 if k >= n else 0.0 if k < 0 else beta_cdf(1 - p, n - k, k + 1)


def _fraction(x: float, a: float, b: float) -> float:
    """1/(1 + d1/(1 + d2/(1 + …))), the continued fraction of 26.5.8."""
    value = upper = 1.0
    lower = 0.0
    for step in range(1, 100_000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / ((1 + term * lower) or _TINY)
        upper = (1 + term / upper) or _TINY
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return 1 / value
