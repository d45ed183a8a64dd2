"""The gang exists and does not run yet: the status says what keeps it from that, for as long as it does."""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import HELD, WAITED_FOR, Reason
from finetune_api.status import FineTuneJobStatus, LastFailure
from finetune_operator.decision import Decision, Event
from finetune_operator.diagnosis.startup_blockers import find_blocker
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition, find
from finetune_operator.state.views import parse_time

OFTEN = 60.0
"""Seconds between two writes that report the same blocker in other words, at least: the scheduler counts nodes."""

PASSING = frozenset(reason.value for reason in (*WAITED_FOR, *HELD))


def wait_for_gang(seen: Observed, now: datetime) -> Decision:
    found = find_blocker(seen, now)
    if found.failure is None:
        return Decision(status=without_blocker(seen, now), look_again_in=found.wait)
    return report_blocker(seen, found.failure, now)


def report_blocker(seen: Observed, failure: LastFailure, now: datetime) -> Decision:
    """The status that says why, and what to do about it; an event where the reason is new."""
    old = seen.status.last_failure
    known = old is not None and (old.attempt, old.reason) == (failure.attempt, failure.reason)
    if old is not None and known:
        since = parse_time(old.time)
        wait = OFTEN - (now - since).total_seconds() if since else 0.0
        if old.message == failure.message:
            return Decision(status=seen.status)
        if 0 < wait <= OFTEN:  # more: it was written by a clock that was wrong
            return Decision(status=seen.status, look_again_in=wait)
    status = change(seen.status, last_failure=failure)
    message = f"Attempt {failure.attempt} waits: {failure.message} ({failure.hint})"
    reason, stamp = Reason(failure.reason), Stamp(seen.job.generation, now)
    return Decision(
        status=condition(status, "Running", true=False, reason=reason, message=message, stamp=stamp),
        events=() if known else (Event(reason, message, "Warning"),),
    )


def without_blocker(seen: Observed, now: datetime) -> FineTuneJobStatus:
    """Without a blocker of this attempt that was reported and has passed."""
    status, old = seen.status, seen.status.last_failure
    if old is not None and old.attempt == seen.attempt and old.reason in PASSING:
        status = change(status, last_failure=None)
    running = find(status, "Running")
    if running is None or running.reason not in PASSING:
        return status
    message, stamp = f"Attempt {seen.attempt} starts", Stamp(seen.job.generation, now)
    return condition(status, "Running", true=False, reason=Reason.GangCreated, message=message, stamp=stamp)
