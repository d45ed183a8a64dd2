"""The ladder's pure parts: rules, rungs, decisions, ledger and the order of steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_api.ladder import LadderBudget, Price
from finetune_api.methods import TRAITS
from finetune_trainer.ladder.climb import Climb, Done, Run, Stop
from finetune_trainer.ladder.decision import Decision, Outcome
from finetune_trainer.ladder.ledger import Ledger
from finetune_trainer.ladder.rules import RULES, Facts, choose
from finetune_trainer.ladder.rungs import BASE, rung
from tests.support.ladder_simulation import decided


def methods(facts: Facts) -> list[str]:
    return [each.method for each in choose(facts).rungs]


@pytest.mark.parametrize(
    ("facts", "rule", "rungs"),
    [
        (Facts(rows=99, labelled=True), "few rows", "probe lora"),
        (Facts(rows=99), "few rows", "prompt lora"),
        (Facts(rows=9_999, labelled=True), "fewer than 10,000 rows", "probe lora"),
        (Facts(rows=10_000, labelled=True), "much data", "probe lora partial full"),
        (Facts(rows=5_000, tokens=10_000_000), "much data", "prompt lora partial full"),
        (Facts(rows=5_000, tokens=100_000_000), "many tokens", "prompt lora full"),
        (Facts(), "unknown size", "prompt lora"),
        (Facts(rows=99, tokens=200_000_000), "few rows", "prompt lora"),
        (Facts(rows=20_000, fits={"prompt", "qlora"}), "much data", "prompt qlora"),
        (Facts(rows=20_000, fits={"prompt", "lora", "partial"}), "much data", "prompt lora partial"),
        (Facts(rows=50, chosen=("lora", "full")), "ladder.rungs", "lora full"),
        (Facts(rows=50, chosen=("lora",), fits={"qlora"}), "ladder.rungs", ""),
    ],
)  # fmt: skip
def test_the_rule_that_applies_and_its_rungs(facts: Facts, rule: str, rungs: str) -> None:
    assert choose(facts).rule == rule
    assert methods(facts) == rungs.split()


def test_the_last_rule_always_applies_and_each_rule_has_a_reason() -> None:
    assert RULES[-1].holds(Facts())
    assert all(rule.reason and set(rule.above) <= set(TRAITS) for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_rungs_that_do_not_fit_are_named_with_a_reason() -> None:
    skipped = choose(Facts(rows=20_000, fits={"prompt", "lora"})).skipped
    assert [(each.rung.method, each.reason) for each in skipped] == [
        ("partial", "does not fit into memory"),
        ("full", "does not fit into memory"),
    ]


def test_baselines_are_the_methods_that_leave_the_model_as_it_is() -> None:
    assert {name for name in TRAITS if rung(name).baseline} == {"probe", "prompt", "ptuning", "prefix"}


@pytest.mark.parametrize(
    ("counts", "min_gain", "outcome"),
    [
        ((150, 50, 1000), 0.01, Outcome.taken),
        ((150, 50, 1000), 0.2, Outcome.no_gain),
        ((50, 150, 1000), 0.01, Outcome.no_gain),
        ((2, 2, 1000), 0.05, Outcome.no_gain),
        ((16, 10, 100), 0.01, Outcome.inconclusive),
        ((3, 0, 10), 0.01, Outcome.inconclusive),
    ],
)  # fmt: skip
def test_what_is_decided_from_rows_gained_and_lost(
    counts: tuple[int, int, int], min_gain: float, outcome: Outcome
) -> None:
    assert decided(*counts, rungs=3, min_gain=min_gain).outcome is outcome


def test_an_inconclusive_decision_says_how_many_validation_rows_would_decide() -> None:
    """MDE = (z of 0.05 / 3 + z of 0.8) · √(0.26 / 100) = 0.151; (0.151 / 0.05)² · 200 rows = 1,828."""
    found = decided(16, 10, 100, rungs=3, min_gain=0.05)
    assert found.minimum_detectable == pytest.approx(0.1514, abs=5e-4)
    assert found.rows_needed == 1_900
    assert decided(3, 0, 10, rungs=3, min_gain=0.01).rows_needed == 40


def test_a_guard_blocks_and_the_gain_is_still_told() -> None:
    found = decided(150, 50, 1000, rungs=3, min_gain=0.01, blocked="guards.slices is violated")
    assert (found.outcome, found.reason) == (Outcome.blocked, "guards.slices is violated")
    assert found.gain == pytest.approx(0.1)


def test_a_ledger_reserves_and_settles() -> None:
    ledger = Ledger(budget=10).reserve(6)
    assert (ledger.left, ledger.affords(5)) == (4, False)
    ledger = ledger.settle(7)
    assert (ledger.spent, ledger.reserved, ledger.left) == (7, 0, 3)
    assert ledger.reserve(None).left == 0
    assert not ledger.settle(3).affords(None)
    assert Ledger().reserve(1e9).settle(1e9).affords(None)
    with pytest.raises(ValueError, match="does not fit"):
        ledger.reserve(4)
    with pytest.raises(ValueError, match="another rung"):
        ledger.reserve(1).reserve(1)


def test_money_that_was_spent_keeps_its_price_and_what_is_left_has_the_present_one() -> None:
    ledger = Ledger(money=10, price=2).reserve(3)
    assert ledger.left == 2
    ledger = replace(ledger.settle(3, money=6), price=4.0)
    assert (ledger.money_spent, ledger.left, ledger.affords(1.5)) == (6, 1, False)
    assert replace(ledger, price=0.0).left is None, "hours that cost nothing"
    assert Ledger.of(LadderBudget(gpu_hours=3, money=10), Price(per_hour=5, currency="EUR")).left == 2
    with pytest.raises(ValueError, match="needs a price"):
        Ledger.of(LadderBudget(money=10), None)


TAKEN = Decision(outcome=Outcome.taken, reason="gains")
NO_GAIN = Decision(outcome=Outcome.no_gain, reason="gains nothing")
UNSURE = Decision(outcome=Outcome.inconclusive, reason="may be chance")
BLOCKED = Decision(outcome=Outcome.blocked, reason="breaks a guard")


def climbed(*decisions: Decision | None, target: bool = False) -> Climb:
    """After so many rungs of a ladder whose rungs cost one GPU hour each, of four."""
    rungs = choose(Facts(rows=20_000)).rungs
    climb = Climb(rungs=rungs, estimates={each.method: 1.0 for each in rungs}, ledger=Ledger(budget=4.0))
    for each, decision in zip(rungs, decisions, strict=False):
        reaches = target and decision is TAKEN
        climb = climb.started(each).ended(Done(rung=each, cost=1.0, decision=decision, reaches_target=reaches))
    return climb


@pytest.mark.parametrize(
    ("decisions", "follows", "best"),
    [
        ((), "prompt", BASE),
        ((TAKEN,), "lora", "prompt"),
        ((NO_GAIN,), "lora", BASE),
        ((UNSURE,), "lora", BASE),
        ((BLOCKED,), "lora", BASE),
        ((TAKEN, TAKEN), "partial", "lora"),
        ((TAKEN, NO_GAIN), "noGain", "prompt"),
        ((TAKEN, UNSURE), "inconclusive", "prompt"),
        ((TAKEN, BLOCKED), "guard", "prompt"),
        ((TAKEN, None), "memory", "prompt"),
        ((TAKEN, TAKEN, TAKEN, TAKEN), "topRung", "full"),
    ],
)  # fmt: skip
def test_what_follows(decisions: tuple[Decision | None, ...], follows: str, best: str) -> None:
    climb = climbed(*decisions)
    step = climb.next()
    assert (step.rung.method if isinstance(step, Run) else step.reason) == follows
    assert climb.best == best


def test_a_target_that_is_met_ends_the_ladder() -> None:
    step = climbed(TAKEN, target=True).next()
    assert isinstance(step, Stop)
    assert (step.reason, step.why) == ("targetMet", "prompt reaches the target")
    assert isinstance(replace(climbed(NO_GAIN), base_reaches_target=True).next(), Stop)


def test_a_rung_that_may_exceed_the_budget_is_not_started() -> None:
    for ledger, why in (
        (Ledger(budget=1.5, spent=1.0), "lora may cost 1 GPU hours, and 0.5 of 1.5 are left"),
        (Ledger(money=3, money_spent=2, price=2, currency="EUR"), "lora may cost 2 EUR, and 1 of 3 are left"),
        (Ledger(budget=9, money=3, money_spent=2, price=2, currency="EUR"), "lora may cost 2 EUR, and 1 of 3 are left"),
        (Ledger(budget=1.5, spent=1, money=9, price=2), "lora may cost 1 GPU hours, and 0.5 of 1.5 are left"),
    ):
        step = replace(climbed(TAKEN), ledger=ledger).next()
        assert isinstance(step, Stop)
        assert (step.reason, step.why) == ("budget", why)


def test_without_a_rung_that_fits_memory_is_the_reason() -> None:
    step = Climb.of(choose(Facts(fits=())), {}, min_gain=0, ledger=Ledger()).next()
    assert isinstance(step, Stop)
    assert step.reason == "memory"
