"""generation.minStops and generation.minJsonValid: at least this share of the tuned model's texts ends by itself, or is
valid JSON. The limits are Clopper and Pearson's, which are exact: a share near 1 of few texts proves little."""

from __future__ import annotations

from collections.abc import Callable

from finetune_trainer.statistics.differences import ALPHA
from finetune_trainer.statistics.intervals import clopper_pearson

from .facts import Facts, Guard, Share
from .judgement import MOST_ROWS, Judgement, Outcome, rounded_up, unknown


def _judge(key: str, share: Share | None, bound: float) -> Judgement:
    if share is None or not share.rows:
        return unknown(key, bound=bound, reason="no text was generated")
    low, high = clopper_pearson(share.hits, share.rows, alpha=ALPHA)
    outcome = _outcome(low, high, bound)
    return Judgement(
        name=key,
        bound=bound,
        value=share.hits / share.rows,
        low=low,
        high=high,
        verdict=outcome,
        rows=share.rows,
        rows_needed=_needed(share, bound) if outcome is Outcome.inconclusive else None,
        on=key.partition(".")[2],
        within=share.hits / share.rows >= bound,
    )


def _outcome(low: float, high: float, bound: float) -> Outcome:
    return Outcome.passed if low >= bound else Outcome.violated if high < bound else Outcome.inconclusive


def _needed(share: Share, bound: float) -> int | None:
    """Rows that would decide at the same share."""

    def decides(rows: int) -> bool:
        low, high = clopper_pearson(round(share.hits / share.rows * rows), rows, alpha=ALPHA)
        return _outcome(low, high, bound) is not Outcome.inconclusive

    few, many = share.rows, 2 * share.rows
    while not decides(many):
        few, many = many, 2 * many
        if many > MOST_ROWS:
            return None
    while many - few > max(1, few // 100):
        middle = (few + many) // 2
        few, many = (few, middle) if decides(middle) else (middle, many)
    return rounded_up(many)


def _guard(key: str, share: Callable[[Facts], Share | None], *, needs: str, what: str) -> Guard:
    return Guard(
        key=key,
        needs=needs,
        says="{value} of the generated texts " + what + "; at least {bound} is required",
        judge=lambda facts, bound: _judge(key, share(facts), bound),
    )


STOPS = _guard("generation.minStops", lambda facts: facts.stops, needs="evaluation.generate", what="end by themselves")
JSON_VALID = _guard(
    "generation.minJsonValid", lambda facts: facts.json_valid, needs="evaluation.generate", what="are valid JSON"
)
