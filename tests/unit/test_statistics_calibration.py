"""Calibration: golden values of transfer.md §6, identities, and models whose calibration is known."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_trainer.statistics.calibration import (
    _without_noise,
    calibration,
    calibration_difference,
    fit_temperature,
    negative_log_likelihood,
    probabilities,
)
from finetune_trainer.statistics.differences import Verdict
from finetune_trainer.statistics.intervals import Floats


def perfect(rows: int, *, seed: int = 0, spread: float = 2.0) -> tuple[Floats, Floats]:
    """(log scores (rows, 4), gold): labels drawn from the very probabilities."""
    random = np.random.default_rng(seed)
    scores = random.normal(0, spread, (rows, 4))
    gold = (probabilities(scores).cumsum(axis=1) > random.random((rows, 1))).argmax(axis=1)
    return scores, gold


@pytest.mark.parametrize(("rows", "floor"), [(200, 0.090), (1000, 0.039), (5000, 0.018)])
def test_the_floor_of_a_perfect_model(rows: int, floor: float) -> None:
    """Equal-mass bins, 15 of them: transfer.md §6."""
    found = [calibration(*perfect(rows, seed=seed)) for seed in range(20)]
    assert np.mean([each.floor for each in found]) == pytest.approx(floor, rel=0.07)
    assert np.mean([each.ece for each in found]) == pytest.approx(floor, rel=0.1)


def test_constant_confidence_is_as_wrong_as_its_distance_from_accuracy() -> None:
    scores = np.log(np.tile([0.7, 0.3], (50, 1)))
    found = calibration(scores, np.repeat([0, 1], [20, 30]))
    assert found.ece == pytest.approx(0.7 - 0.4)
    assert (len(found.bins), found.bins[0].rows) == (1, 50)


def test_brier_and_nll_of_three_rows() -> None:
    scores = np.log([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    found = calibration(scores, [0, 1, 1])
    assert found.brier == pytest.approx((2 * 0.5**2 + 2 * 0.9**2 + 2 * 0.2**2) / 3)
    assert found.nll == pytest.approx(-np.log([0.5, 0.1, 0.8]).mean())


def test_the_temperature_undoes_what_sharpened_the_scores() -> None:
    scores, gold = perfect(20_000)
    assert fit_temperature(3 * scores, gold) == pytest.approx(3, rel=0.05)
    assert fit_temperature(scores, gold) == pytest.approx(1, rel=0.05)


def test_permuted_labels_make_the_temperature_large_and_no_temperature_is_worse_than_one() -> None:
    scores, gold = perfect(2000)
    noise = np.random.default_rng(5).permutation(gold)
    assert fit_temperature(scores, noise) > 3.9
    best = fit_temperature(scores, gold)
    assert negative_log_likelihood(scores, gold, temperature=best) <= negative_log_likelihood(scores, gold)


def test_a_model_made_overconfident_is_worse_and_an_untouched_one_is_equivalent() -> None:
    scores, gold = perfect(2000)
    found = calibration_difference(scores, 2.5 * scores, gold)
    assert found.verdict is Verdict.worse
    assert found.low is not None
    assert found.low > 0.1
    miscalibrated = 2 * scores
    same = calibration_difference(miscalibrated, miscalibrated + 1e-9, gold)
    assert same.difference == pytest.approx(0, abs=1e-6)
    assert same.verdict is Verdict.equivalent


def test_what_noise_adds_to_a_distance_is_subtracted() -> None:
    """Of a bin without a distance: the plain distance is .798 errors on average, half of the remaining bias of .468 is
    subtracted, and the allowance is all of it. A distance of many errors stays what it is."""
    seen = np.abs(np.random.default_rng(0).normal(0, 0.1, 20_000))
    values, allowances = np.array([_without_noise(float(each), 0.1) for each in seen]).T
    assert values.mean() == pytest.approx(0.0234, abs=0.001)
    assert allowances.mean() == pytest.approx(0.0468, abs=0.001)
    assert _without_noise(1.0, 0.1) == pytest.approx((1.0, 0.0), abs=1e-10)
    assert _without_noise(0.3, 0.0) == (0.3, 0.0)


def test_too_few_rows_have_no_interval() -> None:
    scores, gold = perfect(19)
    found = calibration_difference(scores, 2 * scores, gold)
    assert (found.low, found.reason) == (None, "fewer than 20 rows")


def test_rows_that_depend_on_each_other_widen_the_interval() -> None:
    scores, gold = (np.repeat(part, 10, axis=0) for part in perfect(100))
    alone = calibration_difference(scores, 2 * scores, gold)
    grouped = calibration_difference(scores, 2 * scores, gold, groups=np.repeat(np.arange(100), 10))
    assert alone.low is not None
    assert grouped.low is not None
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)  # type: ignore[operator]


def test_the_order_of_rows_changes_no_bit() -> None:
    scores, gold = perfect(400)
    scores = np.round(scores, 1)
    groups, order = np.arange(400) // 4, np.random.default_rng(9).permutation(400)
    assert calibration_difference(scores, 2 * scores, gold, groups=groups) == calibration_difference(
        scores[order], 2 * scores[order], gold[order], groups=groups[order]
    )
    assert calibration(scores, gold) == calibration(scores[order], gold[order])
