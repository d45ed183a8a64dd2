"""Decides what follows a failed attempt: whether to restart, on which budget, and what to change. Pure.

    no budget  no restart: another attempt cannot help
    FREE       restart, without a limit
    HALVED     restart with half the micro-batch tokens, down to one row; the batch size is unchanged
    ONCE       restart once from the last checkpoint, in case of a hardware error
    COUNTED    restart, counted against retry.maxRestarts

The record of a failure class (`classes`) names its budget; `restarts` defines what each budget allows. The operator
and `finetune run` both use this module. `retry.maxRestarts: 0` disables all restarts except free ones.

Counted restarts expire after `retry.window`, so the limit applies to any such window, like systemd's StartLimitBurst
within StartLimitIntervalSec: a run of months may survive more node failures than a run of hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from . import durations
from .failures import CLASSES, Reason
from .restarts import COUNTED, FREE, Budget
from .status import FailureClass, ResolvedPlan, Restarts

LEAST_TOKENS = 8
"""Minimum size of a micro-batch in tokens, as in the schema."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """Another attempt."""

    restarts: Restarts
    micro_batch_tokens: int | None
    skips: bool = False
    """Whether to skip the batch at which the last attempt failed, if training.skipBadBatch is set."""
    change: str = ""
    """What it does differently, in words."""


@dataclass(frozen=True)
class Enough:
    """No other attempt."""

    why: str = ""
    """Explanation; empty if the failure class is never retried."""
    reason: Reason | None = None
    """Reason to report; None: the reason of the failure."""


def next_attempt(
    failure_class: FailureClass,
    restarts: Restarts,
    *,
    max_restarts: int,
    plan: ResolvedPlan | None,
    micro_batch_tokens: int | None,
    spent: int | None = None,
    window: str = "",
) -> Again | Enough:
    """Decides whether to restart. `plan` holds the resolved settings of the failed attempt, as far as known, and
    `micro_batch_tokens` the size that was requested for it, if any. `spent` is the number of counted restarts within
    `window` (retry.window); None counts all."""
    budget = CLASSES[failure_class].budget
    if budget is None:
        return Enough()
    if max_restarts == 0 and not budget.free:
        return Enough("retry.maxRestarts is 0", Reason.RestartsExhausted)
    if budget.halves:
        if used := (plan.micro_batch_tokens if plan else None) or micro_batch_tokens:
            least = (plan.longest_row if plan else None) or LEAST_TOKENS
            return _with_less(restarts, budget, used=used, least=least)
        budget = COUNTED
    if budget is COUNTED and (restarts.counted if spent is None else spent) >= max_restarts:
        within = f" within {window}" if window else ""
        fields = "retry.maxRestarts, retry.window" if window else "retry.maxRestarts"
        return Enough(f"all {max_restarts} restarts{within} are used up ({fields})", Reason.RestartsExhausted)
    if budget.most is not None and restarts.paid_by(budget) >= budget.most:
        return Enough(budget.enough)
    return Again(
        restarts=_plus(restarts, budget),
        micro_batch_tokens=micro_batch_tokens,
        skips=budget.skips,
        change=budget.change,
    )


def recent(times: tuple[str, ...] | None, counted: int, *, window: str, now: datetime) -> tuple[str, ...]:
    """Returns the times of counted restarts within the window. Restarts without a known time, made by a version without
    windows, count as made now."""
    told = times if times is not None else (written(now),) * counted
    begin = now - timedelta(seconds=durations.seconds(window))
    return tuple(each for each in told if (moment := _read(each)) is None or moment > begin)


def written(moment: datetime) -> str:
    """Formats a time as RFC 3339, in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def pause_seconds(restarts: Restarts, *, counted: bool) -> int:
    """Returns the pause before the next attempt, from counts that include it. The first restart is immediate.

    Counted: 0, 10, 20, 40 ... 300. Others: 0, 1, 2, 4 ... 60."""
    number = restarts.counted if counted else restarts.total - restarts.counted
    pauses = COUNTED.pauses if counted else FREE.pauses
    return 0 if number < 2 else min(pauses.longest, pauses.first * 2 ** min(number - 2, 10))


def _with_less(restarts: Restarts, budget: Budget, *, used: int, least: int) -> Again | Enough:
    least = max(least, LEAST_TOKENS)
    if used <= least:
        return Enough(f"the micro-batch of {used} tokens is one row: it cannot be halved")
    tokens = max(least, used // 2)
    change = f"with micro-batches of {tokens} tokens instead of {used}, and the same batch"
    return Again(restarts=_plus(restarts, budget), micro_batch_tokens=tokens, change=change)


def _plus(restarts: Restarts, budget: Budget) -> Restarts:
    return restarts.model_copy(update={budget.field: restarts.paid_by(budget) + 1})
