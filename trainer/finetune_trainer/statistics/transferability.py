"""How well features suit labels, without training anything. These scores rank layers and models; they predict no score,
so nothing may stop because of them.

features (n, D), labels (n,) numbered from 0. Sources: LogME, You et al. 2021 (arXiv:2102.11005), with the term of the
D - k directions without data that public versions leave out, so it is right for n < D too; H-score, Bao et al. 2019,
with a shrunk covariance after Ibrahim et al. 2021 (arXiv:2110.06893) and Ledoit and Wolf 2004; TransRate, Huang et al.
2022 (arXiv:2106.09362); LEEP, Nguyen et al. 2020 (arXiv:2002.12462).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finetune_trainer.statistics.intervals import Floats

Labels = NDArray[np.int64]

_PRECISE = 1e12
"""Precision from which on something counts as exact: features that span all rows may fit them without noise."""


def log_me(features: ArrayLike, labels: ArrayLike) -> float:
    """Mean over classes of the log evidence of a Bayesian linear model of "is this class", by row. Higher is better."""
    table, gold = _checked(features, labels)
    left, values, _ = np.linalg.svd(table, full_matrices=False)
    kept = values > values.max() * max(table.shape) * np.finfo(np.float64).eps
    return log_me_of(left[:, kept], values[kept], gold)


def log_me_of(left: Floats, values: Floats, labels: ArrayLike) -> float:
    """The same for features that are known by their singular vectors (n, k) and values (k,): directions without data
    add nothing."""
    _, gold = _checked(left, labels)
    squares, targets = values**2, (gold == np.arange(int(gold.max()) + 1)[:, None]).astype(np.float64)
    return float(np.mean([_evidence(left, squares, target, dim=len(values))[0] for target in targets]))


def _evidence(left: Floats, squares: Floats, target: Floats, *, dim: int) -> tuple[float, float, float]:
    """(log evidence by row, alpha, beta) at the precisions of weights and noise that maximise it, by MacKay's fixed
    point. left (n, k), squares (k,): the features' singular vectors and squared singular values."""
    count = len(target)
    inside = left.T @ target
    outside = max(float(target @ target - inside @ inside), 0.0)
    alpha = beta = 1.0
    for _ in range(1000):
        seen = beta * squares
        effective = float((seen / (alpha + seen)).sum())
        weights = float((beta**2 * squares * inside**2 / (alpha + seen) ** 2).sum())
        residual = float((alpha**2 * inside**2 / (alpha + seen) ** 2).sum()) + outside
        last, free = (alpha, beta), count - len(squares) + float((alpha / (alpha + seen)).sum())
        alpha, beta = (
            min(max(number / max(by, 1e-300), 1 / _PRECISE), _PRECISE)
            for number, by in ((effective, weights), (free, residual))
        )
        if max(abs(alpha / last[0] - 1), abs(beta / last[1] - 1)) < 1e-12:
            break
    return log_evidence(left, squares, target, dim=dim, alpha=alpha, beta=beta), alpha, beta


def log_evidence(left: Floats, squares: Floats, target: Floats, *, dim: int, alpha: float, beta: float) -> float:
    """log N(y; 0, F Fᵀ/alpha + I/beta) / n: of y = F w + noise, with precisions alpha of w and beta of the noise."""
    count, rank = len(target), len(squares)
    inside = left.T @ target
    outside = max(float(target @ target - inside @ inside), 0.0)
    seen = beta * squares
    weights = float((beta**2 * squares * inside**2 / (alpha + seen) ** 2).sum())
    residual = float((alpha**2 * inside**2 / (alpha + seen) ** 2).sum()) + outside
    determinant = float(np.log(alpha + seen).sum()) + (dim - rank) * math.log(alpha)
    total = dim * math.log(alpha) + count * math.log(beta) - determinant
    return (total - beta * residual - alpha * weights - count * math.log(2 * math.pi)) / (2 * count)


def h_score(features: ArrayLike, labels: ArrayLike, *, dim: int | None = None) -> float:
    """tr(S⁻¹ (1 - s) B): S the covariance, shrunk by s towards a multiple of the identity, B that of class means. dim:
    of the whole, where the features are coordinates of the subspace that has data."""
    table, gold = _checked(features, labels)
    centred = table - table.mean(axis=0)
    count, inside = centred.shape
    dim = dim or inside
    means = np.zeros_like(centred)
    for one in range(int(gold.max()) + 1):
        means[gold == one] = centred[gold == one].mean(axis=0)
    sample = centred.T @ centred / count
    target = np.trace(sample) / dim
    spread = float(((sample - target * np.eye(inside)) ** 2).sum()) + (dim - inside) * float(target**2)
    noise = float(((centred**2).sum(axis=1) ** 2).sum()) / count - float((sample**2).sum())
    share = min(1.0, max(0.0, noise / count / spread)) if spread > 0 else 1.0
    shrunk = (1 - share) * sample + share * target * np.eye(inside)
    between = means.T @ means / (count - 1)  # as published: unbiased here, and not in S
    return float((1 - share) * np.trace(np.linalg.pinv(shrunk, hermitian=True) @ between))


def trans_rate(features: ArrayLike, labels: ArrayLike, *, epsilon: float = 1e-4) -> float:
    """Coding rate of all features minus the mean rate of each class's, in nats."""
    table, gold = _checked(features, labels)
    centred = table - table.mean(axis=0)
    count = len(centred)
    within = sum(
        (gold == one).sum() / count * _rate(centred[gold == one], epsilon) for one in range(int(gold.max()) + 1)
    )
    return float(_rate(centred, epsilon) - within)


def leep(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean log-likelihood of the labels given what another model predicts, (n, Z): log Σ_z P(y|z) p(z|x). 0 is best."""
    chances, gold = _checked(probabilities, labels)
    joint = np.stack([chances[gold == one].sum(axis=0) for one in range(int(gold.max()) + 1)]) / len(gold)
    given = joint / np.maximum(joint.sum(axis=0), 1e-300)
    return float(np.log((chances * given[gold]).sum(axis=1)).mean())


def _rate(table: Floats, epsilon: float) -> float:
    smaller = table if len(table) > table.shape[1] else table.T  # |I + AᵀA| = |I + AAᵀ|
    _, logdet = np.linalg.slogdet(np.eye(smaller.shape[1]) + smaller.T @ smaller / (len(table) * epsilon))
    return 0.5 * float(logdet)


def _checked(features: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    table, gold = np.asarray(features, np.float64), np.asarray(labels, np.int64)
    if table.ndim != 2 or gold.shape != table.shape[:1] or not len(gold):
        raise ValueError(f"features of shape {table.shape} do not fit labels of shape {gold.shape}")
    return table, gold
