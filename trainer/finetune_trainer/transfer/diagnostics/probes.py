"""What each layer of a model knows about the labels of a classification, before anything is trained.

    accuracy     of a linear probe on rows that it has not seen: exact leave-one-out of a ridge, in closed form
    control      the same for permuted labels: what a probe of this size finds where there is nothing to find (median)
    selectivity  accuracy minus control (Hewitt and Liang 2019, arXiv:1909.03368)
    LogME, H-score, TransRate   scores without a fit, see `statistics.transferability`; they rank layers only

Features are standardised. The penalty is the best one for the rows that were left out, for labels and controls alike,
so the small advantage of choosing it cancels in the selectivity. So does that of choosing the best layer in `chance`:
the best layer of each permutation, which is what the labels have to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.random_streams import PERMUTED
from finetune_trainer.statistics.differences import Difference
from finetune_trainer.statistics.intervals import residual_error, totals
from finetune_trainer.statistics.layers import Choice, one_standard_error
from finetune_trainer.statistics.paired import Paired, difference
from finetune_trainer.statistics.transferability import h_score, leep, log_me_of, trans_rate
from finetune_trainer.transfer.probe import PENALTIES, Array, Labels, Spectrum, fit, stratified

CONTROLS = 19
"""Permutations: labels that beat all of them are beyond chance at 5 %."""

MEMORY = 1 << 30
"""Bytes that the states of all layers may take."""
FEWEST_ROWS = 400
"""Below it, layers are left out to save memory, and not rows."""

Right = NDArray[np.bool_]
States = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    layer: int
    """0 the embeddings, n the output of the n-th block."""
    accuracy: float
    error: float
    """Standard error of the accuracy, by groups of rows."""
    control: float
    log_me: float
    h_score: float
    trans_rate: float

    @property
    def selectivity(self) -> float:
        return self.accuracy - self.control


@dataclass(frozen=True, kw_only=True)
class Curve:
    """All layers on the same rows."""

    layers: tuple[LayerScore, ...]
    rows: int
    majority: float
    """Accuracy of the most frequent label."""
    choice: Choice
    chance: float
    """Share of the labels and their permutations whose best layer is as good as that of the labels: a p-value."""
    elsewhere: Mapping[str, tuple[float, ...]]
    """By slice: accuracy of each layer's probe on rows of another domain. Where there are slices, they decide: the
    layer that is best on the training rows is often not the one that carries over."""
    right: Right
    """(rows,): whether the best layer's probe is right about a row that it has not seen."""
    doubling: Difference
    """From half of the rows to all of them, on the half: what the last doubling added."""

    @property
    def best(self) -> LayerScore:
        return next(score for score in self.layers if score.layer == self.choice.best)

    @property
    def selective(self) -> bool:
        """The labels beat all permutations, by more than two standard errors: those know groups of rows, and a
        permutation does not."""
        return self.chance <= 1 / CONTROLS and self.best.selectivity > 2 * self.best.error


@dataclass(frozen=True, kw_only=True)
class OwnAnswers:
    """The untouched model's own choice among the labels, against the best layer's probe on the same rows."""

    accuracy: float
    leep: float
    """0 is best; `uninformed` where the answers say nothing about the labels."""
    uninformed: float
    probe: Difference


def affordable(blocks: int, dim: int, rows: int, *, fewest: int = FEWEST_ROWS) -> tuple[tuple[int, ...], int]:
    """(layers, rows) whose float32 states (rows, layers, dim) fit into MEMORY: all layers and `rows` where possible;
    fewer layers, but the embeddings and the last one, before there are fewer than `fewest` rows."""
    step = 1
    while (blocks // step + 2) * 4 * dim * min(rows, fewest) > MEMORY and step < blocks:
        step += 1
    layers = tuple(sorted({*range(0, blocks + 1, step), blocks}))
    return layers, min(rows, MEMORY // (len(layers) * 4 * dim))


def curve(
    found: States,
    gold: Labels,
    groups: Labels,
    *,
    layers: Sequence[int],
    blocks: int,
    seed: int,
    slices: Mapping[str, tuple[States, Labels]] | None = None,
) -> Curve:
    """found: (rows, layers, dim) states; gold: (rows,) labels from 0; groups: (rows,) from 0, equal for rows that are
    not independent; slices: states and labels of other rows. Needs four rows and two labels."""
    names, gold = np.unique(gold, return_inverse=True)  # a label may be in none of these rows
    classes = len(names)
    permuted = [gold[np.argsort(PERMUTED.raw(len(gold), seed, number))] for number in range(CONTROLS)]
    scores, right_by_layer, lucky = [], {}, np.zeros(CONTROLS)
    for index, layer in enumerate(layers):
        spectrum = Spectrum.of(found[:, index])
        right, *controls = left_out_right(spectrum, [gold, *permuted], classes)
        right_by_layer[layer] = right
        by_chance = np.array([control.mean() for control in controls])
        lucky = np.maximum(lucky, by_chance)
        scores.append(
            LayerScore(
                layer=layer,
                accuracy=float(right.mean()),
                error=error_of(right, groups),
                control=float(np.median(by_chance)),
                **_without_fit(spectrum, gold, dim=found.shape[2]),
            )
        )
    best = max(scores, key=lambda score: (score.accuracy, -score.layer))
    elsewhere = _elsewhere(found, gold, names, layers, slices or {})
    choice = _choice(scores, elsewhere, {name: len(part[1]) for name, part in (slices or {}).items()}, blocks=blocks)
    return Curve(
        layers=tuple(scores),
        rows=len(gold),
        majority=float(np.bincount(gold).max() / len(gold)),
        choice=choice,
        chance=(1 + int((lucky >= best.accuracy).sum())) / (1 + CONTROLS),
        elsewhere=elsewhere,
        right=right_by_layer[choice.best],
        doubling=_doubling(found[:, list(layers).index(choice.best)], gold, groups, right_by_layer[choice.best]),
    )


def _elsewhere(
    found: States, gold: Labels, names: Labels, layers: Sequence[int], slices: Mapping[str, tuple[States, Labels]]
) -> dict[str, tuple[float, ...]]:
    """Of the ridge that all training rows are fitted with."""
    out: dict[str, list[float]] = {name: [] for name in slices}
    for index, layer in enumerate(layers if slices else ()):
        probe = fit(found[:, index], gold, tuple(map(str, names)), layer=layer, kind="ridge")
        for name, (states, wanted) in slices.items():
            answers = names[probe.log_probabilities(states[:, index]).argmax(axis=1)]
            out[name].append(float((answers == wanted).mean()))
    return {name: tuple(values) for name, values in out.items()}


def _choice(
    scores: Sequence[LayerScore], elsewhere: Mapping[str, tuple[float, ...]], rows: Mapping[str, int], *, blocks: int
) -> Choice:
    """By the mean over slices where there are some, each as important as the others; else by the left-out rows."""
    layers = [each.layer for each in scores]
    if not elsewhere:
        best = max(scores, key=lambda score: (score.accuracy, -score.layer))
        return one_standard_error({each.layer: each.accuracy for each in scores}, error=best.error, blocks=blocks)
    means = [float(np.mean(values)) for values in zip(*elsewhere.values(), strict=True)]
    top = int(np.argmax(means))
    variances = [values[top] * (1 - values[top]) / rows[name] for name, values in elsewhere.items()]
    return one_standard_error(
        dict(zip(layers, means, strict=True)), error=float(np.sqrt(sum(variances)) / len(variances)), blocks=blocks
    )


def left_out_right(spectrum: Spectrum, golds: Sequence[Labels], classes: int) -> list[Right]:
    """For each of several labellings: (rows,) whether the ridge of all other rows is right, at the penalty at which
    most are. One product for all of them."""
    wanted = np.stack(golds)
    targets = np.where(wanted.T[:, :, None] == np.arange(classes), 1.0, -1.0).reshape(wanted.shape[1], -1)
    best = np.zeros(wanted.shape, np.bool_)
    for multiple in reversed(PENALTIES):
        scores = spectrum.left_out(targets, spectrum.penalty(multiple)).reshape(wanted.shape[1], len(golds), classes)
        right = wanted == scores.argmax(axis=2).T
        better = right.mean(axis=1) > best.mean(axis=1)
        best[better] = right[better]
    return list(best)


def own_answers(logs: Array, curve: Curve, gold: Labels, groups: Labels) -> OwnAnswers:
    """logs: (rows, labels) log-probabilities that the untouched model gives to each label."""
    right = logs.argmax(axis=1) == gold
    shares = np.bincount(gold) / len(gold)
    return OwnAnswers(
        accuracy=float(right.mean()),
        leep=leep(np.exp(logs), gold),
        uninformed=float((shares[shares > 0] * np.log(shares[shares > 0])).sum()),
        probe=difference(Paired.scores(base=right, tuned=curve.right, groups=groups.tolist())),
    )


def _without_fit(spectrum: Spectrum, gold: Labels, *, dim: int) -> dict[str, float]:
    """Of the features as coordinates of the directions that have data; LogME with a constant feature, which its model
    lacks."""
    coordinates = spectrum.left * spectrum.values
    constant = np.full((len(gold), 1), len(gold) ** -0.5)
    return {
        "log_me": log_me_of(
            np.hstack([constant, spectrum.left]), np.append(len(gold) ** 0.5, spectrum.values), gold
        ),
        "h_score": h_score(coordinates, gold, dim=dim),
        "trans_rate": trans_rate(coordinates, gold),
    }  # fmt: skip


def _doubling(found: States, gold: Labels, groups: Labels, right: Right) -> Difference:
    half = np.flatnonzero(stratified(gold, 2) == 0)
    [before] = left_out_right(Spectrum.of(found[half]), [gold[half]], int(gold.max()) + 1)
    return difference(Paired.scores(base=before, tuned=right[half], groups=groups[half].tolist()))


def error_of(right: Right, groups: Labels) -> float:
    """Standard error of the share of rows that are right. A row's share at least: that no row is wrong does not make
    the accuracy certain. 1 for a single group."""
    (by_group,) = totals(groups, (right - right.mean()) / len(right))
    return min(max(residual_error(by_group), 1 / len(right)), 1.0)
