"""Concept probes: a label that a layer knows is found, one that is a matter of words is not selective, and a row that
is left out in closed form is one that was never fitted."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune_trainer.data.labelled import Labelled
from finetune_trainer.data.token_sample import TokenSample
from finetune_trainer.transfer.diagnostics.concepts import concept, control, left_out
from finetune_trainer.transfer.probe import Spectrum
from tests.support.training import documents

ROWS, EACH, DIM, WORDS = 30, 12, 24, 40
GROUPS = np.repeat(np.arange(ROWS), EACH)
TYPES = np.random.default_rng(0).integers(0, WORDS, ROWS * EACH)


def _probe(gold: NDArray[np.int64]) -> Labelled:
    sample = TokenSample.of(documents([5, 6]), tokens=4, seed=1)  # of no use here
    labels = tuple("abc"[: int(gold.max()) + 1])
    return Labelled("part", sample, gold, labels, words=TYPES.astype(np.int64), groups=GROUPS)


def _knowing(gold: NDArray[np.int64]) -> NDArray[np.float32]:
    """States with the label in them."""
    states = np.random.default_rng(2).standard_normal((len(gold), DIM))
    states[np.arange(len(gold)), gold] += 4
    return states.astype(np.float32)


def _words() -> NDArray[np.float32]:
    """States that are those of the word, and nothing else."""
    own = np.random.default_rng(3).standard_normal((WORDS, 2 * WORDS))
    return np.asarray(own[TYPES] + 0.01 * np.random.default_rng(4).standard_normal((len(TYPES), 2 * WORDS)), np.float32)


def test_a_group_that_is_left_out_in_closed_form_is_one_that_was_not_fitted() -> None:
    """With scale and centre of all rows, which use no label."""
    chosen = np.random.default_rng(5)
    gold, found = chosen.integers(0, 2, len(GROUPS)), chosen.standard_normal((len(GROUPS), DIM))
    spectrum, targets = Spectrum.of(found), np.stack([2.0 * gold - 1, np.cos(np.arange(len(GROUPS)))], axis=1)
    penalty = spectrum.penalty(0.1)
    fast = left_out(spectrum, targets, GROUPS, penalty)
    scaled = (found - spectrum.centre) / spectrum.scale
    for row in (0, 7, ROWS - 1):
        inside, outside = row != GROUPS, row == GROUPS
        design, mean = scaled[inside] - scaled[inside].mean(axis=0), targets[inside].mean(axis=0)
        weight = np.linalg.solve(design.T @ design + penalty * np.eye(DIM), design.T @ (targets[inside] - mean))
        slow = (scaled[outside] - scaled[inside].mean(axis=0)) @ weight + mean
        assert fast[outside] == pytest.approx(slow, abs=1e-9)


def test_the_layer_that_knows_a_label_is_found_and_noise_is_not_selective() -> None:
    chosen = np.random.default_rng(6)
    gold = chosen.integers(0, 3, len(GROUPS))
    noise = chosen.standard_normal((len(gold), DIM)).astype(np.float32)
    found = concept(_probe(gold), [noise, _knowing(gold)], layers=(0, 4), seed=1)
    assert found.best.layer == 4
    assert found.best.accuracy > 0.9
    assert found.best.selectivity > 0.4
    assert found.layers[0].selectivity < 2 * found.layers[0].error
    assert found.layers[0].accuracy < found.majority + 3 * found.layers[0].error
    assert (found.tokens, found.rows, len(found.layers)) == (len(gold), ROWS, 2)


def test_a_label_that_belongs_to_the_word_is_known_and_so_are_random_labels_of_words() -> None:
    gold = (np.arange(WORDS) % 2)[TYPES]
    [layer] = concept(_probe(gold), [_words()], layers=(0,), seed=1).layers
    assert layer.accuracy > 0.95
    assert layer.control > 0.9
    assert layer.selectivity < 0.1


def test_a_control_has_one_label_for_each_word_with_the_frequencies_of_the_real_ones() -> None:
    gold = (np.random.default_rng(7).random(len(GROUPS)) < 0.2).astype(np.int64)
    drawn = [control(_probe(gold), number, 1) for number in range(60)]
    for each in drawn[:3]:
        assert all(len(set(each[word == TYPES].tolist())) == 1 for word in set(TYPES.tolist()))
    assert np.mean(drawn) == pytest.approx(gold.mean(), abs=0.05)
    assert drawn[0].tolist() != drawn[1].tolist()
    assert drawn[0].tolist() == control(_probe(gold), 0, 1).tolist()
