"""The R-matrix of tasks in sequence (transfer.md §3), and the variety of generated text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_trainer.statistics.continual import continual
from finetune_trainer.statistics.diversity import distinct, entropy, relative_drops

KNOWN = [[0.8, 0.3, 0.1], [0.9, 0.7, 0.2], [0.6, 0.5, 0.9]]


def test_a_matrix_worked_out_by_hand() -> None:
    found = continual(KNOWN, base=[0.2, 0.25, 0.1])
    assert found.acc == pytest.approx((0.6 + 0.5 + 0.9) / 3)
    assert found.bwt == pytest.approx(((0.6 - 0.8) + (0.5 - 0.7)) / 2)
    assert found.fwt == pytest.approx(((0.3 - 0.25) + (0.2 - 0.1)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.6) + (0.7 - 0.5)) / 2)  # from the best, not from the first


def test_forgetting_is_never_less_than_minus_bwt() -> None:
    random = np.random.default_rng(0)
    for size in (2, 3, 6):
        found = continual(random.random((size, size)))
        assert found.forgetting is not None
        assert found.bwt is not None
        assert found.forgetting >= -found.bwt - 1e-12


def test_one_task_forgets_nothing_and_a_matrix_with_holes_is_refused() -> None:
    assert continual([[0.7]]).forgetting is None
    assert continual([[0.7, math.nan], [0.6, 0.8]]).fwt is None  # what comes after the diagonal may be missing
    with pytest.raises(ValueError, match="missing"):
        continual([[0.7, 0.1], [math.nan, 0.8]])
    with pytest.raises(ValueError, match="shape"):
        continual([[0.7, 0.1]])


def test_distinct_and_entropy() -> None:
    assert distinct([1, 2, 1, 2], 1) == 0.5
    assert distinct([1, 2, 1, 2], 2) == pytest.approx(2 / 3)
    assert distinct([1], 4) == 1.0
    assert entropy([1, 2, 3, 4]) == 2.0
    assert entropy([]) == 0.0


def test_longer_texts_are_not_less_varied() -> None:
    """Texts are cut to a common length, so a model that only says more loses nothing."""
    random = np.random.default_rng(1)
    texts = [random.integers(0, 50, 100).tolist() for _ in range(30)]
    for drop in relative_drops([(text[:20], text) for text in texts]):
        assert drop.value == 0.0
        assert drop.low == -drop.high
