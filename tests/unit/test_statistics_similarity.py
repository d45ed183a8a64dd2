"""Similarity of representations: exact sums, invariances, independent states, and what too few tokens do."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune_trainer.statistics.correlation import Bases, null
from finetune_trainer.statistics.similarity import Paired, Sums, coordinates, permuted, with_error

Array = NDArray[np.float64]


def _states(rows: int, dim: int, *, seed: int = 0) -> Array:
    chosen = np.random.default_rng(seed)
    return 2 + chosen.standard_normal((rows, dim)) @ chosen.standard_normal((dim, dim))


def _related(rows: int = 120, dim: int = 8) -> tuple[Array, Array]:
    x = _states(rows, dim)
    return x, x[:, :5] @ np.random.default_rng(9).standard_normal((5, 6)) + 0.7 * _states(rows, 6, seed=3)


def _by_kernels(x: Array, y: Array) -> float:
    """HSIC₁ as Song et al. write it, with (n, n) matrices."""
    n, one = len(x), np.ones(len(x))
    k, other = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(other, 0)
    middle = (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ other) + middle - 2 / (n - 2) * (one @ k @ other @ one)) / (n * (n - 3)))


def test_sums_are_the_kernels() -> None:
    x, y = _related()
    assert Sums.of(x, y).hsic == pytest.approx(_by_kernels(x, y), rel=1e-9)
    expected = _by_kernels(x, y) / np.sqrt(_by_kernels(x, x) * _by_kernels(y, y))
    assert Paired.of(x, y).cka == pytest.approx(expected, rel=1e-9)


def test_uneven_batches_of_two_ranks_add_up_to_one_pass_and_can_be_taken_out_again() -> None:
    x, y = _related()
    edges = [0, 1, 4, 30, 31, 77, 119, 120]
    parts = [Paired.of(x[a:b], y[a:b]) for a, b in pairwise(edges)]
    ranks = [parts[0] + parts[3] + parts[6], parts[1] + parts[2] + parts[4] + parts[5]]
    assert (ranks[0] + ranks[1]).cka == pytest.approx(Paired.of(x, y).cka, rel=1e-12)
    rest = (ranks[0] + ranks[1]) - parts[6]
    assert rest.cka == pytest.approx(Paired.of(x[:119], y[:119]).cka, rel=1e-9)


def test_cka_ignores_rotation_scale_and_offset_and_nothing_else() -> None:
    x, y = _related()
    turned = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0]
    assert Paired.of(x, x).cka == 1, "to the bit: an adapter of zeros changes nothing"
    assert Paired.of(x, 3 * x @ turned - 4).cka == pytest.approx(1, abs=1e-12)
    assert Paired.of(5 * x @ turned + 1, y).cka == pytest.approx(Paired.of(x, y).cka, rel=1e-9)
    assert Paired.of(x, x * np.geomspace(1, 50, 8)).cka < 0.9
    assert Paired.of(x, y).cka == pytest.approx(Paired.of(y, x).cka, rel=1e-12)


def test_independent_states_have_no_cka_at_few_tokens() -> None:
    """100 tokens of 64 dimensions, where the biased CKA is about 0.4: the mean of 40 is within three standard errors
    of 0, and single values are below 0 too."""
    chosen = np.random.default_rng(2)
    values = [Paired.of(*chosen.standard_normal((2, 100, 64))).cka for _ in range(40)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)
    assert min(values) < 0 < max(values)
    assert max(values) < 0.1


def test_permutations_are_what_sums_of_permuted_states_give() -> None:
    x, y = _related()
    orders = [np.arange(120), np.random.default_rng(4).permutation(120)]
    same, mixed = permuted(x, y, orders)
    assert same == pytest.approx(Paired.of(x, y).cka, rel=1e-9)
    assert mixed == pytest.approx(Paired.of(x, y[orders[1]]).cka, rel=1e-6, abs=1e-9)
    assert abs(mixed) < 0.2 < same


def test_the_standard_error_is_the_spread_over_samples() -> None:
    """100 samples of 20 documents of 4 alike tokens: the leave-one-out error is the spread of the values."""
    chosen = np.random.default_rng(6)
    values, errors = [], []
    for _ in range(100):
        x = np.repeat(chosen.standard_normal((20, 5)), 4, axis=0) + 0.3 * chosen.standard_normal((80, 5))
        y = x + np.repeat(chosen.standard_normal((20, 5)), 4, axis=0)
        value, error = with_error([Paired.of(x[i : i + 4], y[i : i + 4]) for i in range(0, 80, 4)])
        values.append(value)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_more_dimensions_than_tokens_are_reduced_without_loss() -> None:
    wide = np.random.default_rng(7).standard_normal((20, 90))
    centre = wide.mean(axis=0)
    found = coordinates(wide, centre)
    assert found.shape == (20, 20)
    assert np.allclose(found @ found.T, (wide - centre) @ (wide - centre).T)


def test_canonical_correlations_are_those_of_the_whitened_covariances() -> None:
    """By another route, Σxx^(-1/2) Σxy Σyy^(-1/2), for states of which all directions are kept."""
    chosen = np.random.default_rng(8)
    x = chosen.standard_normal((400, 6))
    y = x @ chosen.standard_normal((6, 6)) * 0.3 + chosen.standard_normal((400, 6))
    bases = Bases.of(x, y)
    assert bases.x.shape == bases.y.shape == (400, 6)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)

    def inverse_root(side: Array) -> Array:
        values, vectors = np.linalg.eigh(side.T @ side)
        return np.asarray(vectors @ np.diag(values**-0.5) @ vectors.T)

    rho = np.linalg.svd(inverse_root(x) @ (x.T @ y) @ inverse_root(y), compute_uv=False)
    assert bases.correlations().svcca == pytest.approx(rho.mean(), rel=1e-9)


def test_both_are_1_for_any_linear_map_and_do_not_depend_on_offsets() -> None:
    """PWCCA of a public library changes from .913 to .939 when a constant is added (transfer.md §4)."""
    x, y = _related(400)
    same = Bases.of(x, x @ np.random.default_rng(5).standard_normal((8, 8))).correlations()
    assert same.pwcca == pytest.approx(1, abs=0.02)
    plain, moved = Bases.of(x, y).correlations(), Bases.of(x + 100, y - 7).correlations()
    assert (moved.svcca, moved.pwcca) == (pytest.approx(plain.svcca, rel=1e-9), pytest.approx(plain.pwcca, rel=1e-9))
    assert 0.3 < plain.svcca < 0.99


def test_a_shared_half_gives_a_mean_correlation_of_one_half_and_weighs_by_variance_in_pwcca() -> None:
    """Of 8 directions 4 are shared; these have nine times the variance, so PWCCA weighs them three times as much."""
    chosen = np.random.default_rng(3)
    shared, own, other = chosen.standard_normal((3, 20_000, 4))
    found = Bases.of(np.hstack([3 * shared, own]), np.hstack([3 * shared, other])).correlations()
    assert found.svcca == pytest.approx(0.5, abs=0.02)
    assert found.pwcca == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("each", "floor"), [(2.604, 0.55), (10.42, 0.27)])
def test_independent_states_correlate_when_tokens_are_few(each: float, floor: float) -> None:
    """Means measured for 576 directions at 1,500 and 6,000 tokens (transfer.md §4); they depend on the ratio alone."""
    chosen = np.random.default_rng(1)
    x, y = chosen.standard_normal((2, round(60 * each), 60))
    bases = Bases.of(x, y)
    rho = np.linalg.svd(bases.x.T @ bases.y, compute_uv=False)
    assert rho.mean() == pytest.approx(floor, abs=0.02)


def test_too_few_tokens_are_refused_with_the_number_that_is_needed() -> None:
    x, y = np.random.default_rng(1).standard_normal((2, 100, 20))
    bases = Bases.of(x, y)
    assert (bases.enough, bases.needed) == (False, 200)
    with pytest.raises(ValueError, match="need 200 tokens here, not 100"):
        bases.correlations()


def test_the_null_is_what_permuted_tokens_have() -> None:
    x, y = _related(400)
    bases = Bases.of(x, y)
    orders = [np.random.default_rng(seed).permutation(400) for seed in range(5)]
    chance, found = null(bases, orders), bases.correlations()
    assert chance.svcca < 0.2 < found.svcca
    assert chance.pwcca < 0.2 < found.pwcca
