"""Which budget pays for another attempt, and what that attempt does differently."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.budget import Again, Enough, next_attempt, pause_seconds, recent, written
from finetune_api.failures import Reason
from finetune_api.status import FailureClass, ResolvedPlan, Restarts

USED = ResolvedPlan(micro_batch_tokens=1000, longest_row=400)
NONE = Restarts()

BUDGETS: list[tuple[str, FailureClass, Restarts, Restarts | Reason | None]] = [
    ("config", FailureClass.Config, NONE, None),
    ("data", FailureClass.Data, NONE, None),
    ("keys", FailureClass.Authentication, NONE, None),
    ("preempted for the hundredth time", FailureClass.Preemption, Restarts(counted=2, free=99),
     Restarts(counted=2, free=100)),
    ("a lost pod", FailureClass.Infrastructure, NONE, Restarts(counted=1)),
    ("a lost pod, once too often", FailureClass.Infrastructure, Restarts(counted=2), Reason.RestartsExhausted),
    ("a hang", FailureClass.Hang, Restarts(free=9), Restarts(counted=1, free=9)),
    ("a hang, once too often", FailureClass.Hang, Restarts(counted=2), Reason.RestartsExhausted),
    ("a lost peer", FailureClass.PeerLost, Restarts(counted=1), Restarts(counted=2)),
    ("an error", FailureClass.Internal, Restarts(counted=1), Restarts(counted=2)),
    ("memory, whatever else happened", FailureClass.OutOfMemory, Restarts(counted=2),
     Restarts(counted=2, out_of_memory=1)),
    ("not finite", FailureClass.NonFinite, Restarts(counted=2), Restarts(counted=2, non_finite=1)),
    ("not finite again", FailureClass.NonFinite, Restarts(non_finite=1), None),
]  # fmt: skip


@pytest.mark.parametrize(("failure", "before", "then"), [b[1:] for b in BUDGETS], ids=[b[0] for b in BUDGETS])
def test_who_pays(failure: FailureClass, before: Restarts, then: Restarts | Reason | None) -> None:
    verdict = next_attempt(failure, before, max_restarts=2, plan=USED, micro_batch_tokens=None)
    assert (verdict.reason if isinstance(verdict, Enough) else verdict.restarts) == then


HALVINGS: list[tuple[str, ResolvedPlan | None, int | None, int | None]] = [
    ("half", ResolvedPlan(micro_batch_tokens=1000, longest_row=400), None, 500),
    ("half again, but one row at least", ResolvedPlan(micro_batch_tokens=500, longest_row=400), 500, 400),
    ("one row already", ResolvedPlan(micro_batch_tokens=400, longest_row=400), 400, None),
    ("the rows are not known", ResolvedPlan(micro_batch_tokens=1000), None, 500),
    ("the least that the schema has", ResolvedPlan(micro_batch_tokens=8), None, None),
    ("it died before it said what it did", None, 500, 250),
]


@pytest.mark.parametrize(("plan", "asked", "then"), [h[1:] for h in HALVINGS], ids=[h[0] for h in HALVINGS])
def test_memory_is_halved_down_to_one_row(plan: ResolvedPlan | None, asked: int | None, then: int | None) -> None:
    verdict = next_attempt(
        FailureClass.OutOfMemory, NONE, max_restarts=1, plan=plan, micro_batch_tokens=asked
    )  # fmt: skip
    assert (verdict.micro_batch_tokens if isinstance(verdict, Again) else None) == then


def test_memory_of_an_attempt_that_never_said_what_it_used_is_counted() -> None:
    verdict = next_attempt(FailureClass.OutOfMemory, NONE, max_restarts=1, plan=None, micro_batch_tokens=None)
    assert isinstance(verdict, Again)
    assert (verdict.restarts, verdict.micro_batch_tokens) == (Restarts(counted=1), None)


def test_a_halved_batch_stays_halved() -> None:
    verdict = next_attempt(FailureClass.Hang, NONE, max_restarts=1, plan=USED, micro_batch_tokens=500)
    assert isinstance(verdict, Again)
    assert verdict.micro_batch_tokens == 500


@pytest.mark.parametrize("failure", [f for f in FailureClass if f is not FailureClass.Preemption])
def test_no_restarts_means_none(failure: FailureClass) -> None:
    assert isinstance(next_attempt(failure, NONE, max_restarts=0, plan=USED, micro_batch_tokens=None), Enough)


def test_pauses() -> None:
    assert [pause_seconds(Restarts(counted=n), counted=True) for n in range(1, 9)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert [pause_seconds(Restarts(counted=5, free=n), counted=False) for n in (1, 2, 3, 9)] == [0, 1, 2, 60]


NOW = datetime(2026, 3, 1, tzinfo=UTC)


def ago(days: float) -> str:
    return written(NOW - timedelta(days=days))


@pytest.mark.parametrize(
    ("times", "counted", "then"),
    [
        ((ago(60), ago(40), ago(20)), 3, ()),
        ((ago(60), ago(6), ago(1)), 3, (ago(6), ago(1))),
        ((ago(7),), 1, ()),
        ((), 9, ()),
        (None, 0, ()),
        (None, 2, (written(NOW),) * 2),
        (("when?", ago(8)), 2, ("when?",)),
    ],
    ids=["long ago", "in part", "just over", "healed before", "none", "by a version without windows", "not a time"],
)
def test_a_counted_restart_heals(times: tuple[str, ...] | None, counted: int, then: tuple[str, ...]) -> None:
    assert recent(times, counted, window="7d", now=NOW) == then


def test_the_budget_is_that_of_the_window() -> None:
    def decide(spent: int) -> Again | Enough:
        return next_attempt(
            FailureClass.Infrastructure, Restarts(counted=9), max_restarts=3, plan=None, micro_batch_tokens=None,
            spent=spent, window="7d",
        )  # fmt: skip

    again, enough = decide(2), decide(3)
    assert isinstance(again, Again)
    assert again.restarts == Restarts(counted=10)
    assert enough == Enough(
        "all 3 restarts within 7d are used up (retry.maxRestarts, retry.window)", Reason.RestartsExhausted
    )
