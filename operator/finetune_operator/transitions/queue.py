"""A job that waits in a queue: its status, and failures that a preemption is to blame for."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api import durations
from finetune_api.classes import Echo
from finetune_api.failures import CLASSES, Reason, class_of, hint_of
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, LastFailure, Phase
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition, is_true
from finetune_operator.state.views import parse_time

MEETING = timedelta(seconds=60)
"""Beyond a pod's grace period: for so long a new pod may notice that it met an old one."""


def queued(seen: Observed, status: FineTuneJobStatus, *, why: str, now: datetime) -> FineTuneJobStatus:
    """The status of a job that waits for its turn. Its active time begins when that comes."""
    stamp = Stamp(seen.job.generation, now)
    status = change(status, phase=Phase.Queued, start_time=None)
    status = condition(status, "Running", true=False, reason=Reason.Queued, message=why, stamp=stamp)
    return condition(status, "Queued", true=True, reason=Reason.Queued, message=why, stamp=stamp)


def waits_in(queue: str, job: str, why: str = "") -> str:
    return f"the Job {job} waits in the queue {queue}: {why or 'not admitted yet'}"


def left_queue(status: FineTuneJobStatus, *, reason: Reason, message: str, stamp: Stamp) -> FineTuneJobStatus:
    """The status of a job that does not wait for its turn any more, if it did."""
    if not is_true(status, "Queued"):
        return status
    return condition(status, "Queued", true=False, reason=reason, message=message, stamp=stamp)


def excused(seen: Observed, spec: FineTuneJobSpec, failure: LastFailure) -> LastFailure:
    """The failure, free if pods of the turn before were to blame: a queue may let a Job go while these still end, and
    a new pod that met an old one has lost it soon."""
    child, told = seen.child, seen.status.last_failure
    preempted = told is not None and (told.reason, told.attempt) == (Reason.Preempted.value, seen.attempt)
    if not preempted or child is None or CLASSES[failure.failure_class].echo is not Echo.PEER:
        return failure
    at, grace = parse_time(failure.time), timedelta(seconds=durations.seconds(spec.pod.termination_grace_period))
    if at is None or child.resumed is None or at > child.resumed + grace + MEETING:
        return failure
    free, hint = class_of(Reason.Interrupted), hint_of(Reason.Interrupted)
    return failure.model_copy(update={"failure_class": free, "reason": Reason.Interrupted.value, "hint": hint})
