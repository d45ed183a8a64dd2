"""Quantiles against published tables (NIST/SEMATECH e-Handbook 1.3.6.7.2) and closed forms."""

from __future__ import annotations

import math

import pytest

from finetune_trainer.statistics.quantiles import beta_cdf, beta_quantile, binomial_cdf, t_cdf, t_quantile


@pytest.mark.parametrize(
    ("p", "df", "expected"),
    [
        (0.975, 1, 12.706204736),
        (0.975, 2, 4.302652730),
        (0.975, 9, 2.262157163),
        (0.995, 30, 2.749995654),
        (0.95, 5, 2.015048373),
        (0.8, 5, 0.919543780),
        (0.975, 1e9, 1.959963985),
    ],
)
def test_student_t(p: float, df: float, expected: float) -> None:
    assert t_quantile(p, df) == pytest.approx(expected, abs=1e-8)
    assert t_quantile(1 - p, df) == pytest.approx(-expected, abs=1e-8)
    assert t_cdf(expected, df) == pytest.approx(p, abs=1e-8)


def test_students_t_of_one_degree_is_the_cauchy_distribution() -> None:
    assert t_quantile(0.9, 1) == pytest.approx(math.tan(math.pi * 0.4), rel=1e-10)


def test_beta_closed_forms() -> None:
    assert beta_cdf(0.3, 1, 4) == pytest.approx(1 - 0.7**4, rel=1e-12)
    assert beta_quantile(0.025, 5, 10) == pytest.approx(0.127598430, abs=1e-8)
    assert beta_cdf(beta_quantile(0.37, 2.5, 700), 2.5, 700) == pytest.approx(0.37, rel=1e-9)


def test_binomial_is_the_sum_of_its_terms() -> None:
    terms = sum(math.comb(22, k) for k in range(7)) / 2**22
    assert binomial_cdf(6, 22, 0.5) == pytest.approx(terms, rel=1e-12)
    assert (binomial_cdf(-1, 3, 0.5), binomial_cdf(3, 3, 0.5)) == (0.0, 1.0)
