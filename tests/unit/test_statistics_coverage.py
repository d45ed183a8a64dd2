"""Six cells of the simulation that proves the intervals; `make proof` runs the whole grid (tests/proof/coverage.py)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_trainer.statistics.paired import Paired, difference
from tests.proof.coverage import (
    HIGHEST,
    LOWEST,
    Cell,
    calibration_coverage,
    counts,
    coverage,
    false_alarms,
    flagged,
    limits,
    losses,
    power,
)

CELLS = (
    Cell(rows=20, accuracy=0.8, disagreement=0.2),
    Cell(rows=50, accuracy=0.5, disagreement=0.03),
    Cell(rows=300, accuracy=0.97, disagreement=0.2),
    Cell(rows=1000, accuracy=0.8, disagreement=0.03, lost=0.8),
    Cell(rows=100, accuracy=0.97, disagreement=0.2, size=10, similarity=0.3),
    Cell(rows=300, accuracy=0.5, disagreement=0.2, size=10, similarity=0.3, lost=0.8),
)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_interval_holds_the_truth_as_often_as_it_says(cell: Cell) -> None:
    held = coverage(cell, repetitions=500)
    assert held >= LOWEST
    if cell.upper_bound_holds:
        assert held <= HIGHEST


@pytest.mark.parametrize("cell", CELLS[2:5], ids=str)
def test_what_is_simulated_is_what_is_shipped(cell: Cell) -> None:
    (gained,), (lost,) = (part[:1] for part in counts(cell, repetitions=1, seed=3))
    (low,), (high,) = limits(cell, gained[None], lost[None])
    base, tuned, groups = [], [], []
    for group, (more, fewer) in enumerate(zip(gained.astype(int), lost.astype(int), strict=True)):
        base += [0] * more + [1] * (cell.size - more)
        tuned += [1] * more + [0] * fewer + [1] * (cell.size - more - fewer)
        groups += [group] * cell.size
    found = difference(Paired.scores(base=base, tuned=tuned, groups=groups))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_eight_clean_slices_raise_a_false_alarm_in_one_job_of_twenty() -> None:
    assert false_alarms(repetitions=2000) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)


def test_a_slice_that_lost_ten_points_is_found() -> None:
    assert power(repetitions=2000) >= 0.8


def test_a_slice_with_flipped_labels_is_flagged_and_a_clean_one_is_not() -> None:
    assert flagged(flipped=0.2, seeds=40) >= 0.95
    assert flagged(flipped=0.0, seeds=40) <= 0.1


def test_bits_per_byte_of_few_documents() -> None:
    assert LOWEST <= losses(documents=20, windows=3, repetitions=500) <= 0.975


def test_the_difference_of_calibration_errors() -> None:
    assert calibration_coverage(rows=300, base=1, tuned=1.5, noise=0.3, repetitions=100) >= LOWEST


def test_the_wald_interval_that_was_not_chosen_fails() -> None:
    """Without a disagreement it is empty."""
    cell = Cell(rows=50, accuracy=0.5, disagreement=0.03, lost=0.8)
    gained, lost = (part.sum(axis=1) / cell.rows for part in counts(cell, repetitions=500, seed=1))
    half = 1.96 * np.sqrt((gained + lost - (gained - lost) ** 2) / cell.rows)
    assert np.mean(np.abs(gained - lost - cell.truth) <= half) < 0.85
    assert coverage(cell, repetitions=500) >= LOWEST
