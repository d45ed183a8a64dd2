"""What each layer knows about the labels: on features whose answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune_trainer.statistics.transferability import h_score, log_me, trans_rate
from finetune_trainer.transfer.diagnostics.probes import (
    MEMORY,
    Curve,
    affordable,
    curve,
    left_out_right,
    own_answers,
)
from finetune_trainer.transfer.probe import PENALTIES, Spectrum, log_softmax

ROWS, DIM, BLOCKS = 200, 24, 8


def _states(known_from: int, *, seed: int = 0, apart: float = 1.6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """States of a network with a residual stream: what all layers have, a little of their own, and from `known_from`
    on the label in one direction."""
    chosen = np.random.default_rng(seed)
    gold = chosen.permutation(np.arange(ROWS) % 2)
    found = chosen.standard_normal((ROWS, 1, DIM)) + 0.02 * chosen.standard_normal((ROWS, BLOCKS + 1, DIM))
    found[:, known_from:, 0] += apart * np.where(gold == 1, 1, -1)[:, None]
    return found.astype(np.float32), gold


def _curve(known_from: int, **how: float) -> Curve:
    found, gold = _states(known_from, **how)  # type: ignore[arg-type]
    return curve(found, gold, np.arange(ROWS), layers=range(BLOCKS + 1), blocks=BLOCKS, seed=1)


@pytest.mark.parametrize("known_from", [0, 3, 5])
def test_the_layer_that_sets_the_label_is_found(known_from: int) -> None:
    found = _curve(known_from)
    assert (found.choice.enough, found.choice.trained) == (known_from, BLOCKS - known_from)
    assert found.selective
    for score in found.layers:
        assert (score.selectivity > 0.25) == (score.layer >= known_from)
    told = [score.log_me for score in found.layers]
    assert min(told[known_from:]) > max([*told[:known_from], -np.inf])


def test_noise_is_selective_in_one_case_of_twenty_at_most() -> None:
    """Each layer with noise of its own, so that the best of nine is often lucky."""
    selective = 0
    for seed in range(20):
        chosen = np.random.default_rng(seed)
        found = chosen.standard_normal((60, 9, 12)).astype(np.float32)
        gold = chosen.permutation(np.arange(60) % 2)
        selective += curve(found, gold, np.arange(60), layers=range(9), blocks=8, seed=seed).selective
    assert selective <= 3


def test_permuted_labels_are_at_chance() -> None:
    found = _curve(BLOCKS + 1)
    for score in found.layers:
        assert score.control == pytest.approx(0.5, abs=0.08)
        assert score.error == pytest.approx((score.accuracy * (1 - score.accuracy) / ROWS) ** 0.5, rel=0.01)


def test_rows_of_one_group_count_as_one() -> None:
    """Each row twice: as many rows, and the standard error of half of them."""
    found, gold = _states(0, apart=0.5)
    twice, groups = np.repeat(found[:100, :1], 2, axis=0), np.repeat(np.arange(100), 2)
    alone = curve(twice, np.repeat(gold[:100], 2), np.arange(200), layers=[0], blocks=BLOCKS, seed=1).layers[0]
    grouped = curve(twice, np.repeat(gold[:100], 2), groups, layers=[0], blocks=BLOCKS, seed=1).layers[0]
    assert grouped.error > 1.2 * alone.error


def test_several_labellings_at_once_are_what_each_is_alone_and_the_best_penalty_is_taken() -> None:
    found, gold = _states(0, apart=0.4)
    other = np.roll(gold, 7)
    spectrum = Spectrum.of(found[:, 0])
    both = left_out_right(spectrum, [gold, other], 2)
    for each, labels in zip(both, (gold, other), strict=True):
        assert (each == left_out_right(spectrum, [labels], 2)[0]).all()
        signs = np.where(labels[:, None] == np.arange(2), 1.0, -1.0)
        by_penalty = [
            (spectrum.left_out(signs, spectrum.penalty(multiple)).argmax(axis=1) == labels).mean()
            for multiple in PENALTIES
        ]
        assert each.mean() == max(by_penalty)


def test_scores_of_coordinates_are_those_of_the_standardised_features_also_with_few_rows() -> None:
    """LogME, H-score and TransRate depend on distances and angles only: 30 rows of 64 features are 29 coordinates."""
    chosen = np.random.default_rng(3)
    gold = np.arange(30) % 3
    features = chosen.standard_normal((30, 64)) + gold[:, None]
    score = curve(features[:, None].astype(np.float32), gold, np.arange(30), layers=[0], blocks=1, seed=1).layers[0]
    spectrum = Spectrum.of(features.astype(np.float32))
    standardised = (features.astype(np.float32).astype(np.float64) - spectrum.centre) / spectrum.scale
    assert score.h_score == pytest.approx(h_score(standardised, gold), rel=1e-9)
    assert score.trans_rate == pytest.approx(trans_rate(standardised, gold), rel=1e-9)
    with_constant = np.hstack([np.ones((30, 1)), standardised])
    assert score.log_me == pytest.approx(log_me(with_constant, gold), rel=1e-9)


def test_slices_decide_where_there_are_some() -> None:
    """The label is in one direction from layer 2 on, which other domains turn around, and in another one from layer 5
    on, which holds everywhere: the training rows ask for layer 2 and the slice for layer 5."""
    found, gold = _states(2)
    other, other_gold = _states(2, seed=8)
    other[:, 2:, 0] *= -1
    for states, labels in ((found, gold), (other, other_gold)):
        states[:, 5:, 1] += 9 * np.where(labels == 1, 1, -1)[:, None]
    layers = range(BLOCKS + 1)
    alone = curve(found, gold, np.arange(ROWS), layers=layers, blocks=BLOCKS, seed=1)
    assert (alone.choice.enough, alone.elsewhere) in ((2, {}), (5, {}))
    both = curve(
        found, gold, np.arange(ROWS), layers=layers, blocks=BLOCKS, seed=1, slices={"books": (other, other_gold)}
    )
    assert (both.choice.enough, both.choice.trained) == (5, BLOCKS - 5)
    assert both.layers == alone.layers
    books = both.elsewhere["books"]
    assert max(books[2:5]) < 0.3 < 0.9 < min(books[5:])


def test_a_label_that_no_sampled_row_has_changes_nothing() -> None:
    found, gold = _states(3)
    with_gap = curve(found, 2 * gold, np.arange(ROWS), layers=range(BLOCKS + 1), blocks=BLOCKS, seed=1)
    assert with_gap.layers == _curve(3).layers


def test_the_last_doubling_helps_where_rows_are_few_for_the_features_and_not_where_they_are_many() -> None:
    chosen = np.random.default_rng(5)

    def doubling(dim: int, apart: float) -> float | None:
        gold = np.arange(400) % 2
        found = chosen.standard_normal((400, 1, dim)) + apart * np.where(gold == 1, 1, -1)[:, None, None]
        return curve(found.astype(np.float32), gold, np.arange(400), layers=[0], blocks=1, seed=1).doubling.low

    many, few = doubling(3, 1.0), doubling(300, 0.12)
    assert few is not None
    assert many is not None
    assert few > 0 >= many


def test_the_models_own_answers_are_compared_on_the_same_rows() -> None:
    """Answers that are the label: LEEP 0 and no row better; answers without information: minus the label's entropy."""
    found, gold = _states(0)
    known = curve(found[:, :1], gold, np.arange(ROWS), layers=[0], blocks=BLOCKS, seed=1)
    sure = log_softmax(np.where(gold[:, None] == np.arange(2), 60.0, -60.0))
    perfect = own_answers(sure, known, gold, np.arange(ROWS))
    assert (perfect.accuracy, perfect.leep) == (1, pytest.approx(0))
    assert perfect.probe.difference == pytest.approx(known.right.mean() - 1)
    blind = own_answers(np.log(np.full((ROWS, 2), 0.5)), known, gold, np.arange(ROWS))
    assert blind.leep == pytest.approx(blind.uninformed) == pytest.approx(-np.log(2))
    assert str(blind.probe.verdict) == "better"


@pytest.mark.parametrize(("blocks", "dim"), [(30, 1152), (32, 8192), (80, 16384), (126, 32768)])
def test_the_states_of_large_models_fit_into_memory(blocks: int, dim: int) -> None:
    layers, rows = affordable(blocks, dim, 800)
    assert len(layers) * rows * dim * 4 <= MEMORY
    assert rows >= 200
    assert {0, blocks} <= set(layers) <= set(range(blocks + 1))
    assert (len(layers), rows) == (31, 800) or blocks > 30
