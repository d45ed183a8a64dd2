"""What a ladder does next, given the rungs that are done: run the next one, or stop.

    climb = Climb.of(choice, estimates, min_gain=0.01, target=None, budget=40.0)
    while isinstance(step := climb.next(), Run):
        climb = climb.started(step.rung)
        climb = climb.ended(Done(...))
    step.reason    # Stop: why

Reasons to stop, in the order in which they are looked at:

    targetMet      the best rung's score reaches ladder.target, with its whole interval
    guard          a rung breaks a guard; larger rungs forget more
    noGain         a rung that is not a baseline does not gain enough
    inconclusive   the same, but the rows are too few to decide
    topRung        no rung is left
    memory         no rung that is left fits into memory
    budget         the next rung's upper estimate exceeds what is left
    unavailable    the pods of the next rung could not be had
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from finetune_trainer.ladder.decision import Decision, Outcome
from finetune_trainer.ladder.ledger import Ledger
from finetune_trainer.ladder.rules import Choice
from finetune_trainer.ladder.rungs import BASE, Rung


class StopReason(StrEnum):
    target_met = "targetMet"
    guard = "guard"
    no_gain = "noGain"
    inconclusive = "inconclusive"
    top_rung = "topRung"
    memory = "memory"
    budget = "budget"
    unavailable = "unavailable"


_AFTER = {
    Outcome.blocked: StopReason.guard,
    Outcome.no_gain: StopReason.no_gain,
    Outcome.inconclusive: StopReason.inconclusive,
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run this rung, whose cost is estimated as at most so many GPU hours."""

    rung: Rung
    estimate: float | None


@dataclass(frozen=True, kw_only=True)
class Stop:
    reason: StopReason
    why: str


Step = Run | Stop


@dataclass(frozen=True, kw_only=True)
class Done:
    """A rung that has been run and decided about; decision is None where it ran out of memory."""

    rung: Rung
    cost: float
    """GPU hours."""
    money: float | None = None
    """None: no price is known."""
    decision: Decision | None
    reaches_target: bool = False
    """Its score reaches ladder.target, with its whole interval."""

    @property
    def taken(self) -> bool:
        return self.decision is not None and self.decision.outcome is Outcome.taken


@dataclass(frozen=True, kw_only=True)
class Climb:
    """The state of a ladder."""

    rungs: tuple[Rung, ...]
    estimates: Mapping[str, float | None] = field(default_factory=dict)
    """Upper estimates in GPU hours, by method."""
    min_gain: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    done: tuple[Done, ...] = ()
    base_reaches_target: bool = False
    prompt_reaches_target: bool = False
    """The base model does with examples in its prompt."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Why a rung's pods cannot be had, by method."""
    lacks_memory: bool = False
    """A rung was left out of the plan because it does not fit."""

    @classmethod
    def of(cls, choice: Choice, estimates: Mapping[str, float | None], *, min_gain: float, ledger: Ledger) -> Climb:
        return cls(
            rungs=choice.rungs,
            estimates=estimates,
            min_gain=min_gain,
            ledger=ledger,
            lacks_memory=bool(choice.skipped),
        )

    @property
    def best(self) -> str:
        """The method of the rung that was taken last, or base."""
        return next((done.rung.method for done in reversed(self.done) if done.taken), BASE)

    @property
    def comparisons(self) -> int:
        """By which the decisions' share of error is divided."""
        return max(1, len(self.rungs))

    def next(self) -> Step:
        last = self.done[-1] if self.done else None
        if self.done and (who := self._reaches_target()):
            return Stop(reason=StopReason.target_met, why=f"{who} reaches the target")
        if last is not None and (missed := _missed(last)) is not None:
            return missed
        left = self.rungs[len(self.done) :]
        if not left:
            return self._top()
        if (why := self.unavailable.get(left[0].method)) is not None:
            return Stop(reason=StopReason.unavailable, why=f"{left[0].method}: {why}")
        estimate = self.estimates.get(left[0].method)
        if not self.ledger.affords(estimate):
            return Stop(reason=StopReason.budget, why=self._too_expensive(left[0], estimate))
        return Run(rung=left[0], estimate=estimate)

    def started(self, rung: Rung) -> Climb:
        """Reserves the rung's estimate."""
        return replace(self, ledger=self.ledger.reserve(self.estimates.get(rung.method)))

    def ended(self, done: Done) -> Climb:
        """Settles what it cost."""
        return replace(self, ledger=self.ledger.settle(done.cost, money=done.money or 0.0), done=(*self.done, done))

    def _reaches_target(self) -> str:
        """Who does; empty if no model does."""
        if any(done.reaches_target for done in self.done if done.taken):
            return self.best
        if self.base_reaches_target:
            return "the base model"
        return "the base model with examples in its prompt" if self.prompt_reaches_target else ""

    def _top(self) -> Stop:
        last = self.done[-1] if self.done else None
        if self.lacks_memory:
            return Stop(reason=StopReason.memory, why="no other rung fits into memory")
        if last is not None and last.decision is not None and not last.taken:
            return Stop(reason=_AFTER[last.decision.outcome], why=f"{last.rung.method} {last.decision.reason}")
        return Stop(reason=StopReason.top_rung, why="no rung is left to try")

    def _too_expensive(self, rung: Rung, estimate: float | None) -> str:
        ledger, left = self.ledger, self.ledger.left or 0.0
        unit, budget, price = "GPU hours", ledger.budget, 1.0
        if ledger.short_of_money and ledger.price is not None:
            unit, budget, price = ledger.currency, ledger.money, ledger.price
        if estimate is None:
            return f"nothing is left of the budget of {budget:g} {unit} for {rung.method}"
        return f"{rung.method} may cost {estimate * price:.3g} {unit}, and {left * price:.3g} of {budget:g} are left"


def _missed(last: Done) -> Stop | None:
    """A baseline that does not gain says little about the rungs above it."""
    if last.decision is None:
        return Stop(reason=StopReason.memory, why=f"{last.rung.method} does not fit into memory")
    if last.taken or last.rung.baseline:
        return None
    return Stop(reason=_AFTER[last.decision.outcome], why=f"{last.rung.method} {last.decision.reason}")
