"""The paired difference: published examples, the rules by which it gives a verdict, and what must not change it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_trainer.statistics.differences import Difference, Method, Verdict, minimum_detectable
from finetune_trainer.statistics.intervals import clopper_pearson, mcnemar, tango
from finetune_trainer.statistics.multiplicity import holm
from finetune_trainer.statistics.paired import Paired, difference

Z = 1.959963984540054


def of_counts(both: int, gained: int, lost: int, neither: int, **rules: float) -> Difference:
    base = [1] * both + [0] * gained + [1] * lost + [0] * neither
    tuned = [1] * both + [1] * gained + [0] * lost + [0] * neither
    return difference(Paired.scores(base=base, tuned=tuned), **rules)  # type: ignore[arg-type]


def test_tango_of_published_data() -> None:
    """Complete response before and after consolidation therapy (Cavo et al. 2012), as Fagerland, Lydersen and Laake's
    contingencytables 3.1 prints it: -0.0621 (-0.1240 to -0.0054)."""
    found = of_counts(59, 6, 16, 80)
    assert (found.difference, found.low, found.high) == pytest.approx((-0.0621, -0.1240, -0.0054), abs=5e-5)
    assert (found.method, found.verdict) == (Method.tango, Verdict.worse)


def test_without_any_disagreement_the_interval_is_not_empty() -> None:
    """Closed form for no gained and no lost row: ± z² / (n + z²)."""
    low, high = tango(0, 0, 50, quantile=Z)
    assert (float(low), float(high)) == pytest.approx((-(Z**2) / (50 + Z**2), Z**2 / (50 + Z**2)))


def test_mcnemar_is_the_binomial_test_of_the_disagreements() -> None:
    assert mcnemar(6, 16) == pytest.approx(2 * sum(math.comb(22, k) for k in range(7)) / 2**22)
    assert mcnemar(0, 0) == 1.0
    assert of_counts(59, 6, 16, 80).p_value == pytest.approx(mcnemar(6, 16))


def test_clopper_pearson_of_all_rows_right() -> None:
    assert clopper_pearson(128, 128, alpha=0.05) == pytest.approx((0.025 ** (1 / 128), 1.0))


@pytest.mark.parametrize(("rows", "points"), [(100, 11.1), (300, 6.4), (1000, 3.5), (3000, 2.0)])
def test_minimum_detectable_difference(rows: int, points: float) -> None:
    """80 % power, one-sided 5 %, a fifth of the rows in disagreement: 2.49·√(q/n)."""
    assert 100 * minimum_detectable(0.2, rows, one_sided=True) == pytest.approx(points, abs=0.05)


def test_what_no_row_disagrees_on_is_still_not_detectable_below_a_bound() -> None:
    assert minimum_detectable(0.0, 1000) == pytest.approx(7.849 / 1000, rel=1e-3)


def test_verdicts() -> None:
    assert of_counts(800, 60, 10, 130).verdict is Verdict.better
    assert of_counts(800, 10, 60, 130).verdict is Verdict.worse
    assert of_counts(800, 30, 25, 145).verdict is Verdict.inconclusive
    assert of_counts(800, 30, 25, 145, margin=0.05).verdict is Verdict.equivalent
    assert of_counts(800, 60, 10, 130, margin=0.1).verdict is Verdict.equivalent  # equivalent comes first
    assert of_counts(800, 35, 18, 147).verdict is Verdict.better
    assert of_counts(800, 35, 18, 147, comparisons=8).verdict is Verdict.inconclusive


@pytest.mark.parametrize(("rows", "verdict"), [(250, Verdict.inconclusive), (300, Verdict.equivalent)])
def test_equivalence_is_judged_by_the_90_percent_interval(rows: int, verdict: Verdict) -> None:
    """Without disagreement the limits are ± z²/(n + z²): .0089 at 90 % and .0127 at 95 % for 300 rows, margin .01."""
    assert of_counts(rows // 2, 0, 0, rows // 2).verdict is verdict


def test_lower_losses_are_better() -> None:
    random = np.random.default_rng(1)
    nats = random.gamma(20, 1, 200)
    found = difference(Paired.losses(base=nats, tuned=nats * 0.9, tokens=np.full(200, 10)))
    assert found.difference is not None
    assert found.difference < 0
    assert found.verdict is Verdict.better
    assert not found.measure.higher_is_better


def test_the_ratio_of_sums_is_compared_and_not_the_mean_of_ratios() -> None:
    nats, sizes = np.arange(1.0, 41), np.arange(40, 0, -1.0)
    found = difference(Paired.bits_per_byte(base=nats, tuned=nats / 2, sizes=sizes))
    assert found.base == pytest.approx(nats.sum() / (math.log(2) * sizes.sum()))


def test_one_row_a_group_is_the_paired_t_interval() -> None:
    random = np.random.default_rng(2)
    base, tuned = random.normal(0, 1, 30), random.normal(0.3, 1, 30)
    found = difference(Paired.losses(base=base, tuned=tuned, tokens=np.ones(30)))
    change = tuned - base
    half = 2.045229642 * change.std(ddof=1) / math.sqrt(30)  # t of .975 and 29 degrees of freedom
    assert (found.low, found.high) == pytest.approx((change.mean() - half, change.mean() + half))


@pytest.mark.parametrize(
    ("rows", "groups", "reason"),
    [(19, None, "fewer than 20 rows"), (90, 9, "fewer than 10 groups"), (0, None, "no rows")],
)
def test_too_few_to_say_anything(rows: int, groups: int | None, reason: str) -> None:
    labels = None if groups is None else [i % groups for i in range(rows)]
    found = difference(Paired.scores(base=[0] * rows, tuned=[1] * rows, groups=labels))
    assert (found.verdict, found.low, found.minimum_detectable, found.reason) == (
        Verdict.inconclusive,
        None,
        None,
        reason,
    )


def test_rows_that_agree_in_a_group_count_for_less() -> None:
    base = np.zeros(400)
    tuned = np.repeat(np.arange(40) % 4 == 0, 10) * 1.0
    alone = difference(Paired.scores(base=base, tuned=tuned))
    grouped = difference(Paired.scores(base=base, tuned=tuned, groups=list(np.repeat(np.arange(40), 10))))
    assert alone.effective_rows == 400
    assert grouped.effective_rows == pytest.approx(40, rel=0.05)
    assert grouped.method is Method.tango_groups


def test_neither_the_order_of_rows_nor_the_names_of_groups_change_a_bit() -> None:
    random = np.random.default_rng(3)
    base, tuned, tokens = random.lognormal(0, 8, 300), random.lognormal(0, 8, 300), random.integers(1, 40, 300)
    groups = np.array([f"document {i // 6}" for i in range(300)])
    first = difference(Paired.losses(base=base, tuned=tuned, tokens=tokens, groups=list(groups)))
    order = random.permutation(300)
    again = difference(
        Paired.losses(base=base[order], tuned=tuned[order], tokens=tokens[order], groups=list(groups[order]))
    )
    assert first == again


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same rows"):
        Paired.scores(base=[0, 1], tuned=[0])
    with pytest.raises(ValueError, match="not finite"):
        Paired.losses(base=[1.0], tuned=[math.nan], tokens=[3])


def test_holm() -> None:
    """Holm 1979: the smallest is multiplied by their number, the next by one less, and none falls below the last."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
