"""collapse.maxDrop: the variety of generated text falls by at most this share. See `transfer.generated.evidence`."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_trainer.statistics.diversity import Drop

from .facts import Facts, Guard
from .judgement import Judgement, Outcome, at_most, unknown

KEY = "collapse.maxDrop"
DEFAULT_BOUND = 0.2
_ORDER = (Outcome.violated, Outcome.inconclusive, Outcome.passed)


def worst(drops: Sequence[Drop], *, bound: float, rows: int) -> Judgement:
    """The figure that fell most; the intervals are adjusted for the number of figures."""
    judged = [
        at_most(KEY, bound=bound, value=drop.value, low=drop.low, high=drop.high, rows=rows, on=drop.name)
        for drop in drops
    ]
    return min(judged, key=lambda each: (_ORDER.index(each.verdict), -(each.high or 0.0), each.on))


def _judge(facts: Facts, bound: float) -> Judgement:
    if not facts.drops:
        return unknown(KEY, bound=bound, rows=facts.prompts, reason=f"{facts.prompts} generated texts are too few")
    return worst(facts.drops, bound=bound, rows=facts.prompts)


COLLAPSE = Guard(
    key=KEY,
    needs="evaluation.generate",
    says="the variety of generated text falls by {value}; at most {bound} is allowed",
    judge=_judge,
)
