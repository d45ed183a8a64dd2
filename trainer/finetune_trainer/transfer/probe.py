"""Linear classifiers on features that do not change: exact, in closed form where there is one. No network here.

    ridge     one-vs-rest least squares with an intercept. One decomposition gives every penalty, and the prediction of
              each row by a fit without it: with H = 1/n + U diag(s²/(s² + λ)) Uᵀ the residual of row i, left out, is
              (y - Hy)_i / (1 - H_ii). Scores become probabilities by one factor, fitted to those predictions.
    logistic  multinomial, L-BFGS in double precision, its penalty chosen by five stratified folds

Features are centred and scaled by all training rows; that uses no label, so a row that is left out for its label still
has its share in the scale. Penalties are multiples of the mean squared singular value: the same for any size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Kind = Literal["ridge", "logistic"]

PENALTIES = tuple(10.0**power for power in range(-5, 4))
"""Multiples of the mean squared singular value."""

FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """`softmax(features @ weight.T + bias)` are the probabilities of `labels`."""

    weight: NDArray[np.float32]
    """(labels, dim): scale and centre of the features are in it."""
    bias: NDArray[np.float32]
    """(labels,)"""
    labels: tuple[str, ...]
    layer: int
    """Whose states the features are: 0 the embeddings, n the output of the n-th block."""
    kind: Kind
    penalty: float
    """The chosen one of PENALTIES."""
    accuracy: float
    """Cross-validated, on the training rows."""

    def log_probabilities(self, features: NDArray[Any]) -> Array:
        """(rows, labels) in nats."""
        return log_softmax(features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias)

    def save(self, folder: Path, **more: Any) -> None:
        """probe.safetensors and probe.json; `more` is information for readers."""
        from safetensors.numpy import save_file

        save_file({"weight": self.weight, "bias": self.bias}, folder / "probe.safetensors")
        told = {name: getattr(self, name) for name in ("labels", "layer", "kind", "penalty", "accuracy")}
        (folder / "probe.json").write_text(json.dumps(told | more, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Probe:
        from safetensors.numpy import load_file

        told = json.loads((folder / "probe.json").read_text())
        arrays = load_file(folder / "probe.safetensors")
        return cls(
            weight=arrays["weight"],
            bias=arrays["bias"],
            labels=tuple(told["labels"]),
            layer=told["layer"],
            kind=told["kind"],
            penalty=told["penalty"],
            accuracy=told["accuracy"],
        )


@dataclass(frozen=True)
class Spectrum:
    """Centred and scaled features as U diag(s) Vᵀ, and all that a ridge of any penalty needs."""

    left: Array
    """(rows, rank)"""
    values: Array
    """(rank,)"""
    right: Array
    """(rank, dim)"""
    centre: Array
    scale: Array
    """(dim,) both"""

    @classmethod
    def of(cls, features: NDArray[Any]) -> Spectrum:
        raw = features.astype(np.float64)
        centre, scale = raw.mean(axis=0), raw.std(axis=0)
        scale[scale < 1e-12] = 1.0
        left, values, right = np.linalg.svd((raw - centre) / scale, full_matrices=False)
        kept = values > 1e-10 * max(1e-300, float(values.max(initial=0.0)))
        return cls(left[:, kept], values[kept], right[kept], centre, scale)

    def penalty(self, multiple: float) -> float:
        """λ of a multiple of the mean squared singular value."""
        return multiple * float(np.mean(self.values**2)) if len(self.values) else multiple

    def left_out(self, targets: Array, penalty: float) -> Array:
        """(rows, columns): each row of `targets` as predicted by the ridge of all other rows."""
        shrink = self.values**2 / (self.values**2 + penalty)
        mean = targets.mean(axis=0)
        fitted = mean + self.left @ (shrink[:, None] * (self.left.T @ (targets - mean)))
        leverage = 1 / len(targets) + (self.left**2) @ shrink
        return np.asarray(targets - (targets - fitted) / np.maximum(1 - leverage, 1e-12)[:, None])

    def ridge(self, targets: Array, penalty: float) -> tuple[Array, Array]:
        """(weight (columns, dim), bias (columns,)) for features as they are."""
        mean = targets.mean(axis=0)
        inner = (self.values / (self.values**2 + penalty))[:, None] * (self.left.T @ (targets - mean))
        return self._unscaled(inner.T @ self.right, mean)

    def _unscaled(self, weight: Array, bias: Array) -> tuple[Array, Array]:
        weight = weight / self.scale
        return weight, bias - weight @ self.centre

    def logistic(self, gold: Labels, classes: int, penalty: float, rows: Labels | None = None) -> tuple[Array, Array]:
        """The same for the multinomial fit of all, or of these, rows; penalty on the weights alone."""
        coordinates = self.left * self.values
        inner, bias = _logistic(
            coordinates if rows is None else coordinates[rows],
            gold if rows is None else gold[rows],
            classes,
            penalty,
        )
        return self._unscaled(inner @ self.right, bias)


@dataclass(frozen=True)
class Judged:
    """A penalty, judged on rows that were not fitted."""

    multiple: float
    accuracy: float
    nats: float
    """Mean negative log-likelihood of a row."""
    factor: float = 1.0
    """From scores to logits."""


def judge_ridge(spectrum: Spectrum, gold: Labels, classes: int) -> Judged:
    """The best penalty: most rows right, then the likelier."""
    return _best([_judge(spectrum, gold, classes, multiple) for multiple in PENALTIES])


def _judge(spectrum: Spectrum, gold: Labels, classes: int, multiple: float) -> Judged:
    scores = spectrum.left_out(_signs(gold, classes), spectrum.penalty(multiple))
    factor = _factor(scores, gold)
    nats = -log_softmax(factor * scores)[np.arange(len(gold)), gold].mean()
    return Judged(multiple, float((scores.argmax(axis=1) == gold).mean()), float(nats), factor)


def judge_logistic(spectrum: Spectrum, features: NDArray[Any], gold: Labels, classes: int) -> Judged:
    folds = stratified(gold, min(FOLDS, len(gold)))
    judged = []
    for multiple in reversed(PENALTIES):
        logs = np.zeros((len(gold), classes))
        for fold in range(int(folds.max()) + 1):
            inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            weight, bias = spectrum.logistic(gold, classes, spectrum.penalty(multiple) / len(gold), inside)
            logs[outside] = log_softmax(features[outside].astype(np.float64) @ weight.T + bias)
        right = float((logs.argmax(axis=1) == gold).mean())
        judged.append(Judged(multiple, right, float(-logs[np.arange(len(gold)), gold].mean())))
    return _best(judged)


def fit(features: NDArray[Any], gold: Labels, labels: tuple[str, ...], *, layer: int, kind: Kind) -> Probe:
    """On (rows, dim) features; `gold` are indices of `labels`. Needs two rows."""
    spectrum, classes = Spectrum.of(features), len(labels)
    if kind == "ridge":
        best = judge_ridge(spectrum, gold, classes)
        weight, bias = spectrum.ridge(_signs(gold, classes), spectrum.penalty(best.multiple))
        weight, bias = best.factor * weight, best.factor * bias
    else:
        best = judge_logistic(spectrum, features, gold, classes)
        weight, bias = spectrum.logistic(gold, classes, spectrum.penalty(best.multiple) / len(gold))
    return Probe(
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        labels=labels,
        layer=layer,
        kind=kind,
        penalty=best.multiple,
        accuracy=best.accuracy,
    )


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float64)


def stratified(gold: Labels, folds: int) -> Labels:
    """(rows,): the fold of each row; the rows of one label are dealt out in turn."""
    out = np.zeros(len(gold), np.int64)
    start = 0
    for label in np.unique(gold):
        members = np.flatnonzero(gold == label)
        out[members] = (start + np.arange(len(members))) % folds
        start += len(members)
    return out


def _best(judged: list[Judged]) -> Judged:
    return max(judged, key=lambda one: (one.accuracy, -one.nats))


def _signs(gold: Labels, classes: int) -> Array:
    """(rows, classes): 1 for a row's label, -1 for the others."""
    return np.where(gold[:, None] == np.arange(classes)[None], 1.0, -1.0)


def _factor(scores: Array, gold: Labels) -> float:
    """By which `softmax(factor * scores)` is likeliest, by golden section: the likelihood is concave in it.

    Of each row's label a share of 1/(rows + 1) counts as unknown, since no number of right rows proves certainty.
    """
    unknown = 1 / (len(gold) + 1)

    def nats(factor: float) -> float:
        logs = log_softmax(factor * scores)
        return float(-((1 - unknown) * logs[np.arange(len(gold)), gold] + unknown * logs.mean(axis=1)).mean())

    low, high = 0.0, 100.0
    ratio = (5**0.5 - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if nats(left) <= nats(right) else (left, high)
    return (low + high) / 2


def _logistic(coordinates: Array, gold: Labels, classes: int, penalty: float) -> tuple[Array, Array]:
    """(weight (classes, rank), bias (classes,)) that minimise mean nats + penalty/2 · |weight|²."""
    import torch

    x, y = torch.from_numpy(coordinates), torch.from_numpy(gold)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach().numpy(), bias.detach().numpy()
