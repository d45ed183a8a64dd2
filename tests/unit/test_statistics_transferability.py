"""Transferability scores: golden values on Fisher's irises (transfer.md §5), and what they equal by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_trainer.statistics.transferability import h_score, leep, log_evidence, log_me, trans_rate
from tests.support.iris import FEATURES, LABELS


def test_golden_values() -> None:
    """LogME and H-score as in the unit tests of transformer-ranker 0.2.0; TransRate computed independently."""
    assert log_me(FEATURES, LABELS) == pytest.approx(-0.16006022, abs=1e-7)
    assert h_score(FEATURES, LABELS) == pytest.approx(1.17784248, abs=1e-7)
    assert trans_rate(FEATURES, LABELS) == pytest.approx(0.58940541, abs=1e-7)
    assert trans_rate(FEATURES, LABELS, epsilon=1e-2) == pytest.approx(0.45753568, abs=1e-7)


@pytest.mark.parametrize(("rows", "dim"), [(60, 300), (60, 20)])
def test_the_evidence_is_that_of_the_normal_distribution_with_few_rows_too(rows: int, dim: int) -> None:
    random = np.random.default_rng(0)
    table, target = random.normal(0, 1, (rows, dim)), random.normal(0, 1, rows)
    left, values, _ = np.linalg.svd(table, full_matrices=False)
    alpha, beta = 3.0, 1.5
    covariance = table @ table.T / alpha + np.eye(rows) / beta
    _, logdet = np.linalg.slogdet(covariance)
    expected = -(target @ np.linalg.solve(covariance, target) + logdet + rows * math.log(2 * math.pi)) / (2 * rows)
    assert log_evidence(left, values**2, target, dim=dim, alpha=alpha, beta=beta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("apart", [0.0, 1.0, 100.0])
def test_features_that_span_all_rows_have_a_finite_evidence_and_the_label_among_them_a_higher_one(apart: float) -> None:
    """20 rows of 40 features: every labelling can be fitted exactly."""
    random = np.random.default_rng(1)
    labels = np.arange(20) % 2
    noise = random.normal(0, 1, (20, 40))
    assert math.isfinite(log_me(noise, labels))
    told = noise + apart * np.outer(np.where(labels == 1, 1, -1), random.normal(0, 1, 40))
    assert math.isfinite(log_me(told, labels))
    assert log_me(told, labels) > log_me(noise, labels) or apart == 0


def test_leep_of_one_hot_and_of_uniform_predictions() -> None:
    """One-hot: minus the entropy of the labels given the prediction; uniform: minus the entropy of the labels."""
    predicted = np.array([0, 0, 1, 1, 1, 2])
    gold = np.array([0, 1, 1, 1, 0, 1])
    given = (2 * math.log(2) + 3 * -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))) / 6
    assert leep(np.eye(3)[predicted], gold) == pytest.approx(-given)
    entropy = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))
    assert leep(np.full((6, 4), 0.25), gold) == pytest.approx(-entropy)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        log_me(FEATURES, LABELS[:-1])
