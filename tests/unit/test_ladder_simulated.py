"""The promises of the ladder, on tasks whose truth is known. `make proof` runs them with ten times as many runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_trainer.ladder.climb import StopReason
from finetune_trainer.ladder.decision import Outcome, decide
from finetune_trainer.ladder.rungs import BASE
from tests.support import crossfit_simulation
from tests.support.ladder_simulation import Limits, Rung, Task, counted, decided, share, simulate

RUNS = 300
ALPHA = 0.05


def two_errors(share: float) -> float:
    return 2 * math.sqrt(share * (1 - share) / RUNS)


def test_the_simulation_decides_as_a_run_does() -> None:
    before, after = np.zeros(200, np.bool_), np.zeros(200, np.bool_)
    before[:60] = True
    after[15:95] = True
    task = Task(rungs=(Rung(method="lora"), Rung(method="full")), rows=200)
    limits = Limits.of(task, [{BASE: before, "lora": after, "full": after}])
    fast = decide(limits.change(*counted(before, after)), min_gain=0.01)
    real = decided(35, 15, 200, rungs=2, min_gain=0.01)
    assert fast.outcome is real.outcome
    for name in ("gain", "low", "high", "minimum_detectable"):
        assert getattr(fast, name) == pytest.approx(getattr(real, name), abs=1e-9), name


@pytest.mark.parametrize("methods", [("lora",), ("probe", "lora"), ("prompt", "lora", "partial", "full")])
def test_equal_rungs_step_up_no_more_often_than_alpha(methods: tuple[str, ...]) -> None:
    task = Task(rungs=tuple(Rung(method=method) for method in methods), min_gain=0.0)
    found = simulate(task, runs=RUNS, seed=1)
    assert 1 - share(found, BASE) <= ALPHA + two_errors(ALPHA)


@pytest.mark.parametrize(("rows", "features", "folds"), [(40, 5, 5), (100, 20, 5), (100, 20, 10)])
def test_equal_rungs_that_are_cross_fitted_step_up_no_more_often_than_alpha(
    rows: int, features: int, folds: int
) -> None:
    task = crossfit_simulation.Learning(rows=rows, features=features, folds=folds)
    found = crossfit_simulation.simulate(task, runs=RUNS, seed=6)
    assert 1 - share(found, BASE) <= ALPHA + two_errors(ALPHA)


def test_a_single_rung_that_is_cross_fitted_steps_up_no_more_often_than_alpha() -> None:
    """As if rows were independent of each other it would be 7.6 %."""
    task = crossfit_simulation.Learning(rows=100, signal=1.0, rungs=("lora",))
    found = crossfit_simulation.simulate(task, runs=1000, seed=6)
    assert 1 - share(found, BASE) <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 1000)


def test_cross_fitting_sees_what_a_split_of_few_rows_does_not() -> None:
    task = crossfit_simulation.Learning(rows=300, gain=0.15)
    crossed = crossfit_simulation.simulate(task, runs=100, seed=7)
    split = crossfit_simulation.simulate_split(task, held_out=0.2, runs=100, seed=7)
    assert 1 - share(crossed, BASE) >= 0.8
    assert 1 - share(split, BASE) <= 0.5


def test_a_rung_that_is_five_points_better_is_taken() -> None:
    """n = 1,000, disagreement 0.2, four planned rungs."""
    better = (Rung(method="lora", gain=0.05), Rung(method="partial", gain=0.05))
    found = simulate(Task(rungs=(Rung(method="prompt"), *better, Rung(method="full"))), runs=RUNS, seed=2)
    assert share(found, "lora", "partial") >= 0.8


def test_what_is_taken_has_a_lower_bound_above_zero_and_the_minimum_gain() -> None:
    rungs = (Rung(method="probe", gain=0.03), Rung(method="lora", gain=0.06), Rung(method="full", gain=0.08))
    found = simulate(Task(rungs=rungs, min_gain=0.03), runs=100, seed=3)
    decisions = [done.decision for each in found for done in each.climb.done]
    taken = [each for each in decisions if each is not None and each.outcome is Outcome.taken]
    assert taken
    for each in decisions:
        assert each is not None
        assert each.low is not None
        assert each.gain is not None
        assert (each.outcome is Outcome.taken) is (each.low > 0 and each.gain >= 0.03)


@pytest.mark.parametrize("price", [None, 0.3, 4.0])
def test_the_budget_is_never_exceeded_by_more_than_one_settlement(price: float | None) -> None:
    """In GPU hours, and in money at these prices."""
    random = np.random.default_rng(4)
    stopped = 0
    for seed in range(100):
        rungs = tuple(
            Rung(method=method, gain=0.1 * place, cost=float(random.lognormal()), estimate=float(random.lognormal()))
            for place, method in enumerate(("probe", "lora", "full"))
        )
        budget = float(random.uniform(0.2, 4))
        limit = {"budget": budget} if price is None else {"money": budget * price, "price": price}
        (found,) = simulate(Task(rungs=rungs, **limit), runs=1, seed=seed)
        assert found.spent <= budget + found.overrun + 1e-12
        if price is not None:
            assert found.climb.ledger.money_spent <= (budget + found.overrun) * price + 1e-12
        stopped += found.stop is StopReason.budget
    assert 20 < stopped < 100


def test_a_guard_blocks_a_rung_with_a_large_gain() -> None:
    rungs = (Rung(method="lora", gain=0.25, blocked="guards.forgetting is violated"), Rung(method="full", gain=0.25))
    for each in simulate(Task(rungs=rungs), runs=50, seed=5):
        assert (each.best, each.stop, each.spent) == (BASE, StopReason.guard, 1.0)
