"""What may follow a failed attempt: another one, out of which budget, and what it does differently. Pure.

    Config, Data, Authentication               nothing: another try cannot help
    Preemption                                 another attempt, free
    OutOfMemory                                half the micro-batch tokens, down to one row; the batch stays what it is
    NonFinite                                  once from the last checkpoint, in case the machine erred
    Hang, PeerLost, Infrastructure, Internal   counted against retry.maxRestarts

The operator and `finetune run` decide by this. `retry.maxRestarts: 0` asks for no restart but the free ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from .failures import CLASSES, Reason
from .status import FailureClass, ResolvedPlan, Restarts

LEAST_TOKENS = 8
"""Of a micro-batch, by the schema."""

FIRST_PAUSE, LONGEST_PAUSE = 10, 300
"""Seconds before the second counted restart, and before any."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """Another attempt."""

    restarts: Restarts
    micro_batch_tokens: int | None
    skips: bool = False
    """Without the batch at which the last attempt failed, if people asked for that."""
    change: str = ""
    """What it does differently, for people."""


@dataclass(frozen=True)
class Enough:
    """No other attempt."""

    why: str = ""
    """Empty: because of the failure's class."""
    reason: Reason | None = None
    """None: the failure's."""


def next_attempt(
    failure_class: FailureClass,
    restarts: Restarts,
    *,
    max_restarts: int,
    plan: ResolvedPlan | None,
    micro_batch_tokens: int | None,
) -> Again | Enough:
    """`plan`: what the failed attempt did, as far as it is known. `micro_batch_tokens`: as asked of it, if it was."""
    rule = CLASSES[failure_class]
    if not rule.retried:
        return Enough()
    if failure_class is FailureClass.Preemption:
        return Again(restarts=_plus(restarts, "free"), micro_batch_tokens=micro_batch_tokens)
    if max_restarts == 0:
        return Enough("retry.maxRestarts is 0", Reason.RestartsExhausted)
    if failure_class is FailureClass.NonFinite:
        if restarts.non_finite:
            return Enough("it was not finite when it was tried again, either")
        return Again(
            restarts=_plus(restarts, "non_finite"),
            micro_batch_tokens=micro_batch_tokens,
            skips=True,
            change="once more from the last checkpoint",
        )
    known = plan.micro_batch_tokens if plan else None
    if failure_class is FailureClass.OutOfMemory and (used := known or micro_batch_tokens):
        return _with_less(restarts, used=used, least=(plan.longest_row if plan else None) or LEAST_TOKENS)
    if restarts.counted >= max_restarts:
        return Enough(f"all {max_restarts} restarts are used up (retry.maxRestarts)", Reason.RestartsExhausted)
    return Again(restarts=_plus(restarts, "counted"), micro_batch_tokens=micro_batch_tokens)


def pause_seconds(restarts: Restarts, *, counted: bool) -> int:
    """Between a failure and the next attempt, from the counts that include it. The first restart is made at once.

    Counted: 0, 10, 20, 40 ... 300. Others: 0, 1, 2, 4 ... 60, so that a node that evicts at once is not hammered."""
    if counted:
        number = restarts.counted
        return 0 if number < 2 else min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(number - 2, 10))
    number = restarts.total - restarts.counted
    return 0 if number < 2 else min(60, 2 ** min(number - 2, 10))


def _with_less(restarts: Restarts, *, used: int, least: int) -> Again | Enough:
    least = max(least, LEAST_TOKENS)
    if used <= least:
        return Enough(f"the micro-batch of {used} tokens is one row: it cannot be halved")
    tokens = max(least, used // 2)
    change = f"with micro-batches of {tokens} tokens instead of {used}, and the same batch"
    return Again(restarts=_plus(restarts, "out_of_memory"), micro_batch_tokens=tokens, change=change)


def _plus(restarts: Restarts, field: str) -> Restarts:
    return restarts.model_copy(update={field: (getattr(restarts, field) or 0) + 1})
