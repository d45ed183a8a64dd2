"""ladder.learningRates: the race within a rung, on candidates whose truth is known, and through a kill at any write."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from finetune_api.failures import FinetuneError, Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.ladder import Ladder
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent.rungs import LadderRun
from finetune_trainer.ladder.derived import factor_of, of_candidate
from finetune_trainer.ladder.race import MARKS, Leg, cost, next_leg, runs
from finetune_trainer.planning import forecast
from tests.support.made_rungs import Deadly, Killed, Machine, job
from tests.unit.test_ladder_run import ladder

FACTORS = (1.0, 0.33, 3.0)
END = len(MARKS)


@dataclass
class Raced:
    winner: int | None
    trained: dict[int, float] = field(default_factory=dict)
    """Share of the steps that each candidate has made."""
    starts: int = 0


def raced(factors: tuple[float, ...], truth: Any, noise: Any) -> Raced:
    """truth: loss of each candidate at the end; noise: (candidates, marks), added to it at a mark."""
    losses: dict[tuple[int, int], float] = {}
    found = Raced(None)
    while (leg := next_leg(factors, losses)) is not None:
        end = leg.until if leg.until is not None else 1.0
        assert end > found.trained.get(leg.candidate, 0.0), "a step was made twice"
        found.trained[leg.candidate] = end
        found.starts += 1
        if leg.mark is None:
            found.winner = leg.candidate
            return found
        losses[leg.candidate, leg.mark] = truth[leg.candidate] + noise[leg.candidate, leg.mark]
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_race_costs_what_is_reserved_for_it_and_makes_no_step_twice(count: int) -> None:
    random = np.random.default_rng(count)
    factors = tuple(float(each) for each in np.geomspace(0.1, 10, count))
    for _ in range(200):
        found = raced(factors, random.normal(size=count), random.normal(size=(count, len(MARKS))))
        assert sum(found.trained.values()) == pytest.approx(cost(count))
        assert found.starts == runs(count)
    assert (cost(1), cost(3)) == (1.0, pytest.approx(1.4))


def test_the_best_rate_wins_as_often_as_the_noise_allows() -> None:
    """2,000 races of three rates 0.1 apart. Without noise always; with noise of half a distance in most of them, which
    a choice by chance would be in a third."""
    random = np.random.default_rng(7)
    truths = [random.permutation([1.0, 1.1, 1.2]) for _ in range(2000)]
    for noise, least in ((0.0, 1.0), (0.05, 0.75)):
        wins = sum(
            raced(FACTORS, truth, noise * random.normal(size=(3, len(MARKS)))).winner == int(np.argmin(truth))
            for truth in truths
        )
        assert wins / len(truths) >= least


def test_a_rate_that_diverges_is_out_and_equal_rates_leave_the_default() -> None:
    zero = np.zeros((3, len(MARKS)))
    assert raced(FACTORS, [math.inf, 1.0, math.inf], zero).winner == 1
    assert raced((3.0, 1.0, 0.33), [1.0, 1.0, 1.0], zero).winner == 1
    assert raced(FACTORS, [math.inf] * 3, zero).winner is None
    assert next_leg(FACTORS, {}) == Leg(candidate=0, mark=0)
    assert next_leg((2.0,), {}) == Leg(candidate=0, mark=None)


@pytest.mark.parametrize(
    ("late", "then"),
    [
        ([(0, 1)], 2),
        ([(0, END)], 2),
        ([(0, END), (2, END)], 1),
        ([(0, 1), (2, 1)], 1),
        ([(0, END), (2, END), (1, END)], None),
    ],
)
def test_the_next_best_goes_on_to_the_end_for_one_that_diverges_late(
    late: list[tuple[int, int]], then: int | None
) -> None:
    """The losses of three rates are 1.0, 1.2 and 1.1, so the first and the third have come to the second mark."""
    losses = {(0, 0): 1.0, (1, 0): 1.2, (2, 0): 1.1, (0, 1): 1.0, (2, 1): 1.1}
    assert next_leg(FACTORS, losses) == Leg(candidate=0, mark=None)
    leg = next_leg(FACTORS, losses | dict.fromkeys(late, math.inf))
    assert leg == (None if then is None else Leg(candidate=then, mark=None))
    assert next_leg((0.5,), {(0, END): math.inf}) is None


def test_a_factor_that_is_named_twice_races_once() -> None:
    assert Ladder(learning_rates=(1.0, 3.0, 1.0)).factors == (1.0, 3.0)
    assert Ladder().factors == (1.0,)


def racing(folder: Path, **more: Any) -> FineTuneJob:
    return job(folder, **{"ladder.rungs": ["probe", "lora"], "ladder.learningRates": list(FACTORS), **more})


def test_a_ladder_publishes_the_rate_that_won_and_a_probe_does_not_race(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8}, losses={1.0: 1.2, 0.33: 1.3, 3.0: 1.1})
    ended, words = ladder(racing(tmp_path), machine, tmp_path).to_the_end()
    assert words.failure_class is None
    assert machine.legs == [(1.0, 0.1), (0.33, 0.1), (3.0, 0.1), (3.0, 0.3), (1.0, 0.3)]
    assert machine.trained == ["probe", "lora"]
    (published,) = machine.published
    assert published.uid == "u1-lora-x3"
    assert ended.status.ladder is not None
    assert ended.status.ladder.best == "lora"
    (root,) = (tmp_path / "out" / ".finetune").iterdir()
    left = [file for file in (root / "rungs" / "lora").rglob("*") if "notes" in file.parts]
    assert not [file for file in left if file.is_file()], "the losers' notes and checkpoints go too"


def test_a_rung_whose_rates_all_diverge_fails(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8}, losses=dict.fromkeys(FACTORS, math.inf))
    with pytest.raises(FinetuneError, match="diverged at all learning rates") as failed:
        ladder(racing(tmp_path), machine, tmp_path).to_the_end()
    assert failed.value.reason is Reason.LossNonFinite
    assert machine.published == []


def test_the_runner_up_is_published_where_the_winner_diverges_in_its_last_leg(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8}, losses={1.0: 1.2, 0.33: 1.3, 3.0: 1.1}, diverge_late=(3.0,))
    _, words = ladder(racing(tmp_path), machine, tmp_path).to_the_end()
    assert words.failure_class is None
    assert machine.legs == [(1.0, 0.1), (0.33, 0.1), (3.0, 0.1), (3.0, 0.3), (1.0, 0.3), (3.0, 1.0)]
    assert (machine.trained, [each.uid for each in machine.published]) == (["probe", "lora"], ["u1-lora"])


@pytest.mark.parametrize("factors", [[1.0, 0.33], [2.0]])
def test_a_rung_that_is_committed_stays_when_the_rates_change(factors: list[float], tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8}, losses={1.0: 1.2, 0.33: 1.3, 3.0: 1.1})
    interrupted = ladder(racing(tmp_path), machine, tmp_path)
    interrupted._publish = lambda *_: (interrupted.job, TerminationMessage())  # type: ignore[method-assign]
    interrupted.to_the_end()
    before = list(machine.legs)
    _, words = ladder(racing(tmp_path, **{"ladder.learningRates": factors}), machine, tmp_path).to_the_end()
    assert words.failure_class is None
    assert (machine.legs, machine.trained) == (before, ["probe", "lora"])
    assert [each.uid for each in machine.published] == ["u1-lora-x3"]
    assert machine.factors == [3.0]
    assert not list((tmp_path / "out").rglob("notes/*")), "those of rates that are no longer asked for too"


@pytest.mark.parametrize("factor", [1.0, 0.33, 3.0, 100.0, 1e-5, 1.5e-7, 12.5])
def test_the_rate_of_a_run_is_in_its_uid(factor: float, tmp_path: Path) -> None:
    rung = job(tmp_path)
    assert factor_of(of_candidate(rung, factor).metadata.uid, of=rung.metadata.uid) == factor
    assert factor_of("u1-lora", of="u1") is None


def test_a_failure_in_a_race_ends_the_run(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6}, fails={"lora": Reason.StorageUnavailable})
    _, words = ladder(racing(tmp_path), machine, tmp_path).to_the_end()
    assert words.reason is Reason.StorageUnavailable
    assert machine.legs == []


@pytest.mark.parametrize("last", range(1, 8))
def test_killed_after_any_write_no_leg_runs_twice(last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven writes of costs and notes; a leg that is noted is not run again."""
    losses, left = {1.0: 1.2, 0.33: math.inf, 3.0: 1.1}, [last]
    machine = Machine({"probe": 0.6, "lora": 0.8}, losses=losses, wrap=lambda folder: Deadly(folder, left))
    whole = LadderRun._open
    monkeypatch.setattr(LadderRun, "_open", lambda self, uri: Deadly(whole(self, uri), left))
    try:
        ladder(racing(tmp_path), machine, tmp_path).to_the_end()
    except Killed:
        pass
    else:
        assert left[0] > 0, "it was never killed"
    left[0] = -1
    _, words = ladder(racing(tmp_path), machine, tmp_path).to_the_end()
    assert words.failure_class is None
    assert machine.legs == [(1.0, 0.1), (0.33, 0.1), (3.0, 0.1), (3.0, 0.3), (1.0, 0.3)]
    assert (machine.trained, [each.uid for each in machine.published]) == (["probe", "lora"], ["u1-lora-x3"])


def test_a_race_is_reserved_in_the_budget(tmp_path: Path) -> None:
    """Of an hour of training: 1.4 hours for three rates, and the start of six processes; a probe has no rates."""
    one, three = job(tmp_path).spec, racing(tmp_path).spec

    def hours(spec: FineTuneJobSpec, method: str, folds: int = 0) -> float:
        known = SimpleNamespace(spec=spec, row=lambda *_: SimpleNamespace(seconds=3600.0), spread=lambda _: None)
        return forecast._hours(cast(Any, known), method, folds=folds) or 0.0

    start, longest = forecast.STARTUP_SECONDS / 3600, forecast.UPPER * (1 + forecast.MEASURING)
    assert hours(one, "lora") == pytest.approx(longest + start)
    assert hours(three, "lora") == pytest.approx(1.4 * longest + 6 * start)
    assert hours(three, "lora", 5) == pytest.approx(6.4 * longest + 11 * start), "five folds, each at the rate that won"
    assert hours(three, "probe") == hours(one, "probe")
