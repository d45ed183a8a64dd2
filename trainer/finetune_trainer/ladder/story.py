"""The ladder as status, log and report show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.ladder import LadderStatus, RungState, RungStatus
from finetune_trainer.ladder.climb import Climb, Done, Run, Step, Stop, StopReason
from finetune_trainer.ladder.decision import Decision
from finetune_trainer.ladder.evidence import FewShot, Finding
from finetune_trainer.ladder.rules import Choice
from finetune_trainer.ladder.rungs import BASE
from finetune_trainer.transfer.records import FEW_SHOT

_WHY = {
    StopReason.target_met: "the target is reached",
    StopReason.guard: "it breaks a guard, and larger rungs change the model more",
    StopReason.no_gain: "a step up does not pay",
    StopReason.inconclusive: "the validation rows are too few to show whether a step up pays",
    StopReason.top_rung: "no rung is left",
    StopReason.memory: "the next rung does not fit into memory",
    StopReason.unavailable: "the next rung found no pods",
    StopReason.budget: "the next rung may exceed the budget",
}


def status(
    choice: Choice,
    climb: Climb,
    step: Step,
    findings: Mapping[str, Finding],
    rates: Mapping[str, float | None],
    shown: FewShot | None = None,
) -> LadderStatus:
    prompted = () if shown is None else (_prompted(shown),)
    first, ledger = next(iter(findings.values()), None), climb.ledger
    priced = any(done.money is not None for done in climb.done)
    return LadderStatus(
        rule=choice.rule,
        rule_reason=choice.reason,
        metric=first.measure.name if first else None,
        base_score=_finite(first.best_score) if first else None,
        rungs=(*prompted, *_rungs(choice, climb, step, findings, rates)),
        spent=round(ledger.spent, 6),
        budget=ledger.budget,
        money_spent=round(ledger.money_spent, 6) if priced else None,
        money_budget=ledger.money,
        currency=ledger.currency or None,
        best=climb.best,
        stop_reason=step.reason.value if isinstance(step, Stop) else None,
        story=told(climb, step, findings, shown)[:1024] if isinstance(step, Stop) else "",
    )


def sentence(method: str, found: Finding) -> str:
    """rung lora is taken: accuracy 0.81 against 0.70, gain +0.11 [+0.05, +0.17]; …"""
    decision = found.decision
    verdict = {"taken": "is taken", "noGain": "is not taken", "blocked": "is blocked"}.get(
        decision.outcome, "is not taken, inconclusive"
    )
    scores = f"{found.measure.name} {found.score:.3g} against {found.best_score:.3g}"
    return f"rung {method} {verdict}: {scores}{_between(decision)}; {decision.reason}"


def prompting(shown: FewShot) -> str:
    """the base model with 4 examples in its prompt has accuracy 0.78 against 0.70 without, gain +0.08 [+0.02, +0.14]"""
    found, decision = shown.found, shown.found.decision
    scores = f"{found.measure.name} {found.score:.3g} against {found.best_score:.3g} without"
    return f"the base model with {shown.examples} examples in its prompt has {scores}{_between(decision)}"


def told(climb: Climb, stop: Stop, findings: Mapping[str, Finding], shown: FewShot | None = None) -> str:
    """One paragraph on why the ladder stopped where it did."""
    parts = [f"The best is {'the base model' if climb.best == BASE else climb.best}."]
    if shown is not None:
        parts += [f"{_sentence(prompting(shown))}."]
        if shown.beyond is not None:
            parts += [f"Compared with that, {climb.best} {shown.beyond.reason}."]
    for done in climb.done:
        if (found := findings.get(done.rung.method)) is not None:
            parts.append(f"{_sentence(sentence(done.rung.method, found))}.")
    parts.append(f"The ladder stopped because {_WHY[stop.reason]} ({stop.why}).")
    return " ".join(parts)


def _between(decision: Decision) -> str:
    if decision.gain is None or decision.low is None or decision.high is None:
        return ""
    return f", gain {decision.gain:+.3g} [{decision.low:+.3g}, {decision.high:+.3g}] on {decision.rows:,} rows"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _prompted(shown: FewShot) -> RungStatus:
    """Without a cost of its own: it is measured in the first rung's run. Without a decision: nothing is trained that
    could be taken."""
    reason = f"{shown.examples} examples in the prompt, nothing trained; {shown.found.decision.reason}"
    return RungStatus(name=FEW_SHOT, state="done", reason=reason[:1024], **_measured(shown.found))


def _measured(found: Finding) -> dict[str, Any]:
    decision = found.decision
    return {
        "score": _finite(found.score),
        "gain": decision.gain,
        "low": decision.low,
        "high": decision.high,
        "minimum_detectable": decision.minimum_detectable,
        "rows": decision.rows,
        "rows_needed": decision.rows_needed,
    }


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
    return RungStatus(
        name=done.rung.method,
        state="done",
        estimate=estimate,
        cost=cost,
        money=_rounded(done.money),
        learning_rate=rate,
        decision=found.decision.outcome.value,
        reason=found.decision.reason[:1024],
        **_measured(found),
    )


def _finite(value: float) -> float | None:
    return value if value == value else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
