"""Concept probes: whether the label of a token follows from its state, layer by layer.

    accuracy     of a ridge on the tokens of rows that it was not fitted to, each row left out at once: tokens of
                 one row depend on each other
    control      the same for random labels, one for each different text of a span, drawn with the frequencies of the
                 real ones: what a probe gets right by knowing words (Hewitt and Liang 2019, arXiv:1909.03368); median
    selectivity  accuracy minus control

Leaving a row out is exact and needs no other fit: with hat matrix H and residuals e of the fit to all tokens, those of
a left-out row G are (I - H_GG)^-1 e_G. Features are standardised by all tokens, which uses no label. Labels and
controls take the penalty at which most tokens are right, so the small advantage of choosing it cancels in the
selectivity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.labelled import Labelled
from finetune_trainer.random_streams import CONTROL
from finetune_trainer.transfer.probe import PENALTIES, Array, Labels, Spectrum

from .probes import Right, States, error_of

CONTROLS = 5


@dataclass(frozen=True, kw_only=True)
class ConceptScore:
    layer: int
    """0 the embeddings, n the output of the n-th block."""
    accuracy: float
    error: float
    """Standard error of the accuracy, by rows."""
    control: float

    @property
    def selectivity(self) -> float:
        return self.accuracy - self.control


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One probe on one model."""

    name: str
    labels: tuple[str, ...]
    tokens: int
    rows: int
    majority: float
    """Accuracy of the most frequent label."""
    layers: tuple[ConceptScore, ...]

    @property
    def best(self) -> ConceptScore:
        return max(self.layers, key=lambda each: (each.accuracy, -each.layer))


def concept(probe: Labelled, states: Iterable[States], *, layers: Sequence[int], seed: int) -> Concept:
    """states: (tokens, dim) of each layer."""
    labellings = [probe.gold, *(control(probe, number, seed) for number in range(CONTROLS))]
    scores = []
    for layer, found in zip(layers, states, strict=True):
        right, *by_chance = left_out_right(Spectrum.of(found), labellings, probe.groups, len(probe.labels))
        scores.append(
            ConceptScore(
                layer=layer,
                accuracy=float(right.mean()),
                error=error_of(right, probe.groups),
                control=float(np.median([each.mean() for each in by_chance])),
            )
        )
    return Concept(
        name=probe.name,
        labels=probe.labels,
        tokens=len(probe.gold),
        rows=int(probe.groups.max()) + 1,
        majority=float(np.bincount(probe.gold).max() / len(probe.gold)),
        layers=tuple(scores),
    )


def control(probe: Labelled, number: int, seed: int) -> Labels:
    """(tokens,): a random label for each different text, whatever its place. Drawn with the frequencies of the labels:
    that of a token which is as far up among all as the number is between 0 and 1."""
    drawn = CONTROL.raw(int(probe.words.max()) + 1, seed, number) / 2.0**64
    ordered = np.sort(probe.gold)
    return np.asarray(ordered[(drawn * len(ordered)).astype(np.int64)][probe.words])


def left_out_right(spectrum: Spectrum, golds: Sequence[Labels], groups: Labels, classes: int) -> list[Right]:
    """For each of several labellings: (tokens,) whether the ridge of all other groups is right, at the penalty at which
    most are."""
    wanted = np.stack(golds)
    targets = np.where(wanted.T[:, :, None] == np.arange(classes), 1.0, -1.0).reshape(wanted.shape[1], -1)
    best = np.zeros(wanted.shape, np.bool_)
    for multiple in reversed(PENALTIES):
        scores = left_out(spectrum, targets, groups, spectrum.penalty(multiple))
        right = wanted == scores.reshape(wanted.shape[1], len(golds), classes).argmax(axis=2).T
        better = right.mean(axis=1) > best.mean(axis=1)
        best[better] = right[better]
    return list(best)


def left_out(spectrum: Spectrum, targets: Array, groups: Labels, penalty: float) -> Array:
    """(tokens, columns): each group of `targets` as predicted by the ridge of all other groups."""
    shrink = spectrum.values**2 / (spectrum.values**2 + penalty)
    mean = targets.mean(axis=0)
    residuals = targets - mean - spectrum.left @ (shrink[:, None] * (spectrum.left.T @ (targets - mean)))
    out = np.empty_like(targets)
    for rows in _members(groups):
        own = spectrum.left[rows]
        hat = 1 / len(targets) + (own * shrink) @ own.T
        inner = np.eye(len(rows)) - hat
        out[rows] = targets[rows] - np.linalg.lstsq(inner, residuals[rows], rcond=1e-10)[0]
    return out


def _members(groups: Labels) -> list[NDArray[np.int64]]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.cumsum(np.bincount(groups))[:-1])
