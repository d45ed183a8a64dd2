"""The ladder as status, log and report show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from finetune_api.ladder import LadderStatus, RungState, RungStatus
from finetune_trainer.ladder.climb import Climb, Done, Run, Step, Stop, StopReason
from finetune_trainer.ladder.evidence import Finding
from finetune_trainer.ladder.rules import Choice
from finetune_trainer.ladder.rungs import BASE

_WHY = {
    StopReason.target_met: "the target is reached",
    StopReason.guard: "it breaks a guard, and larger rungs change the model more",
    StopReason.no_gain: "a step up does not pay",
    StopReason.inconclusive: "the validation rows are too few to show whether a step up pays",
    StopReason.top_rung: "no rung is left",
    StopReason.memory: "the next rung does not fit into memory",
    StopReason.budget: "the next rung may exceed the budget",
}


def status(
    choice: Choice, climb: Climb, step: Step, findings: Mapping[str, Finding], rates: Mapping[str, float | None]
) -> LadderStatus:
    first, ledger = next(iter(findings.values()), None), climb.ledger
    priced = any(done.money is not None for done in climb.done)
    return LadderStatus(
        rule=choice.rule,
        rule_reason=choice.reason,
        metric=first.measure.name if first else None,
        base_score=_finite(first.best_score) if first else None,
        rungs=tuple(_rungs(choice, climb, step, findings, rates)),
        spent=round(ledger.spent, 6),
        budget=ledger.budget,
        money_spent=round(ledger.money_spent, 6) if priced else None,
        money_budget=ledger.money,
        currency=ledger.currency or None,
        best=climb.best,
        stop_reason=step.reason.value if isinstance(step, Stop) else None,
        story=told(climb, step, findings)[:1024] if isinstance(step, Stop) else "",
    )


def sentence(method: str, found: Finding) -> str:
    """rung lora is taken: accuracy 0.81 against 0.70, gain +0.11 [+0.05, +0.17]; …"""
    decision = found.decision
    verdict = {"taken": "is taken", "noGain": "is not taken", "blocked": "is blocked"}.get(
        decision.outcome, "is not taken, inconclusive"
    )
    between = ""
    if decision.gain is not None and decision.low is not None and decision.high is not None:
        between = f", gain {decision.gain:+.3g} [{decision.low:+.3g}, {decision.high:+.3g}] on {decision.rows:,} rows"
    scores = f"{found.measure.name} {found.score:.3g} against {found.best_score:.3g}"
    return f"rung {method} {verdict}: {scores}{between}; {decision.reason}"


def told(climb: Climb, stop: Stop, findings: Mapping[str, Finding]) -> str:
    """One paragraph on why the ladder stopped where it did."""
    parts = [f"The best is {'the base model' if climb.best == BASE else climb.best}."]
    for done in climb.done:
        if (found := findings.get(done.rung.method)) is not None:
            text = sentence(done.rung.method, found)
            parts.append(f"{text[:1].upper()}{text[1:]}.")
    parts.append(f"The ladder stopped because {_WHY[stop.reason]} ({stop.why}).")
    return " ".join(parts)


def _rungs(
    choice: Choice, climb: Climb, step: Step, findings: Mapping[str, Finding], rates: Mapping[str, float | None]
) -> Iterator[RungStatus]:
    for done in climb.done:
        yield _done(done, climb, findings.get(done.rung.method), rates.get(done.rung.method))
    left = climb.rungs[len(climb.done) :]
    for place, rung in enumerate(left):
        running = place == 0 and isinstance(step, Run)
        state: RungState = "running" if running else "planned" if isinstance(step, Run) else "skipped"
        reason = step.why if isinstance(step, Stop) else ""
        yield RungStatus(
            name=rung.method, state=state, estimate=_rounded(climb.estimates.get(rung.method)), reason=reason[:1024]
        )
    for each in choice.skipped:
        yield RungStatus(name=each.rung.method, state="skipped", reason=each.reason)


def _done(done: Done, climb: Climb, found: Finding | None, rate: float | None) -> RungStatus:
    estimate, cost = _rounded(climb.estimates.get(done.rung.method)), round(done.cost, 6)
    if found is None:
        why = "does not fit into memory"
        return RungStatus(
            name=done.rung.method, state="skipped", estimate=estimate, cost=cost, money=_rounded(done.money), reason=why
        )
    decision = found.decision
    return RungStatus(
        name=done.rung.method,
        state="done",
        estimate=estimate,
        cost=cost,
        money=_rounded(done.money),
        learning_rate=rate,
        score=_finite(found.score),
        gain=decision.gain,
        low=decision.low,
        high=decision.high,
        minimum_detectable=decision.minimum_detectable,
        rows=decision.rows,
        rows_needed=decision.rows_needed,
        decision=decision.outcome.value,
        reason=decision.reason[:1024],
    )


def _finite(value: float) -> float | None:
    return value if value == value else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
