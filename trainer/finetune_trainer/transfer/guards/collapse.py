"""collapse.maxDrop: the variety of generated text falls by at most this share. Of each prompt, both models' texts are
cut to the length of the shorter one, since longer texts repeat themselves more by nature."""

from __future__ import annotations

from finetune_trainer.statistics.differences import too_few
from finetune_trainer.statistics.diversity import relative_drops

from .facts import Facts, Guard
from .judgement import Judgement, Outcome, at_most, unknown

KEY = "collapse.maxDrop"
_ORDER = (Outcome.violated, Outcome.inconclusive, Outcome.passed)


def _judge(facts: Facts, bound: float) -> Judgement:
    """The figure that fell most; the intervals are adjusted for the number of figures."""
    prompts = len(facts.generated)
    reason = too_few(rows=prompts, groups=prompts)
    if reason:
        return unknown(KEY, bound=bound, rows=prompts, reason=f"generated texts: {reason}")
    judged = [
        at_most(KEY, bound=bound, value=drop.value, low=drop.low, high=drop.high, rows=prompts, on=drop.name)
        for drop in relative_drops(facts.generated)
    ]
    return min(judged, key=lambda each: (_ORDER.index(each.verdict), -(each.high or 0.0), each.on))


COLLAPSE = Guard(
    key=KEY,
    needs="evaluation.generate",
    says="the variety of generated text falls by {value}; at most {bound} is allowed",
    judge=_judge,
)
