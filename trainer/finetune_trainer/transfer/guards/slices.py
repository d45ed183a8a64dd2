"""slices.maxRegression: no slice loses more than so much of its main score. The intervals are adjusted for the number
of slices, so "all of them passed" and "any of them violated" keep their share of error."""

from __future__ import annotations

from dataclasses import replace

from .facts import Compared, Facts, Guard, lacking
from .judgement import Judgement, Outcome, at_most, unknown

KEY = "slices.maxRegression"
_ORDER = (Outcome.violated, Outcome.inconclusive, Outcome.passed)


def _judge(facts: Facts, bound: float) -> Judgement:
    """The worst slice: a violated one before an inconclusive one, then by how much it may have lost."""
    if not facts.slices:
        return unknown(KEY, bound=bound, reason="no slice was measured")
    judged = [_slice(each, bound) for each in facts.slices]
    return replace(min(judged, key=_badness), within=all(each.within for each in judged))


def _slice(compared: Compared, bound: float) -> Judgement:
    found = compared.improvement
    if found is None:
        return lacking(KEY, compared, bound)
    value, low, high = found
    return at_most(KEY, bound=bound, value=-value, low=-high, high=-low, rows=compared.rows, on=compared.name)


def _badness(judgement: Judgement) -> tuple[int, float, str]:
    possible = float("inf") if judgement.high is None else judgement.high
    return _ORDER.index(judgement.verdict), -possible, judgement.on


SLICES = Guard(
    key=KEY,
    needs="data.slices",
    says="the worst slice loses {value}; at most {bound} is allowed",
    judge=_judge,
)
