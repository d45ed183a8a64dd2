"""A Job that somebody else holds: its queue has not admitted it yet, or has taken its nodes back.

`spec.queueName` makes the attempt's Job suspended, with the label by which Kueue finds it; Kueue lets it go when there
is quota. A preempted Job is suspended again: its pods checkpoint and end, and the same attempt waits for its next turn,
in the place that its queue gives it. Nothing here lets a Job go. While it is held no deadline runs and nothing that
its pods do is a failure.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api import durations
from finetune_api.failures import Reason, class_of, hint_of
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FailureClass, FineTuneJobStatus, LastFailure, Phase
from finetune_operator.decision import Decision, Event
from finetune_operator.observe import Observed
from finetune_operator.status import Stamp, change, condition, failure_of, is_true, rfc3339
from finetune_operator.views import ChildJob, parse_time

UP = (Phase.Starting, Phase.Running)

MEETING = timedelta(seconds=60)
"""Beyond a pod's grace period: for so long a new pod may notice that it met an old one."""


def held(seen: Observed, now: datetime) -> Decision | None:
    """The attempt's Job is suspended, and not by `spec.suspend`."""
    child, phase = seen.child, seen.status.phase
    if child is None or phase is Phase.Suspended:
        return None
    if not child.held:
        return _preempted(seen, child, now).but(look_again_in=0.0) if _begun_anew(seen, child) else None
    if phase in UP:
        return _preempted(seen, child, now)
    return Decision(status=queued(seen, seen.status, why=_why(seen, child), now=now))


def admitted(seen: Observed, now: datetime) -> Decision | None:
    """It was held, and is not any more."""
    child = seen.child
    if seen.status.phase is not Phase.Queued or child is None or child.held or child.deleting:
        return None
    message = f"Attempt {seen.attempt} may start"
    status = change(seen.status, phase=Phase.Pending, start_time=rfc3339(now))
    status = left(status, reason=Reason.Admitted, message=message, stamp=Stamp(seen.job.generation, now))
    stamp = Stamp(seen.job.generation, now)
    status = condition(status, "Running", true=False, reason=Reason.GangCreated, message=message, stamp=stamp)
    return Decision(status=status, events=(Event(Reason.Admitted, message),), look_again_in=0.0)


def queued(seen: Observed, status: FineTuneJobStatus, *, why: str, now: datetime) -> FineTuneJobStatus:
    """The status of a job that waits for its turn. Its active time begins when that comes."""
    stamp = Stamp(seen.job.generation, now)
    status = change(status, phase=Phase.Queued, start_time=None)
    status = condition(status, "Running", true=False, reason=Reason.Queued, message=why, stamp=stamp)
    return condition(status, "Queued", true=True, reason=Reason.Queued, message=why, stamp=stamp)


def waits_in(queue: str, job: str, why: str = "") -> str:
    return f"the Job {job} waits in the queue {queue}: {why or 'not admitted yet'}"


def left(status: FineTuneJobStatus, *, reason: Reason, message: str, stamp: Stamp) -> FineTuneJobStatus:
    """The status of a job that does not wait for its turn any more, if it did."""
    if not is_true(status, "Queued"):
        return status
    return condition(status, "Queued", true=False, reason=reason, message=message, stamp=stamp)


def excused(seen: Observed, spec: FineTuneJobSpec, failure: LastFailure) -> LastFailure:
    """The failure, free if pods of the turn before were to blame: a queue may let a Job go while these still end, and
    a new pod that met an old one has lost it soon."""
    child, told = seen.child, seen.status.last_failure
    preempted = told is not None and (told.reason, told.attempt) == (Reason.Preempted.value, seen.attempt)
    if not preempted or child is None or failure.failure_class is not FailureClass.PeerLost:
        return failure
    at, grace = parse_time(failure.time), timedelta(seconds=durations.seconds(spec.pod.termination_grace_period))
    if at is None or child.resumed is None or at > child.resumed + grace + MEETING:
        return failure
    free, hint = class_of(Reason.Interrupted), hint_of(Reason.Interrupted)
    return failure.model_copy(update={"failure_class": free, "reason": Reason.Interrupted.value, "hint": hint})


def _preempted(seen: Observed, child: ChildJob, now: datetime) -> Decision:
    """No restart, and free: the attempt goes on when the queue lets it."""
    message = f"the nodes of attempt {seen.attempt} were taken back: {_why(seen, child)}"
    failure = failure_of(Reason.Preempted, message, attempt=seen.attempt, at=now)
    status = queued(seen, change(seen.status, last_failure=failure), why=_why(seen, child), now=now)
    return Decision(status=status, events=(Event(Reason.Preempted, message, "Warning"),))


def _begun_anew(seen: Observed, child: ChildJob) -> bool:
    """It was held and let go again while nobody looked: a gang that runs has no pods that never ran, else."""
    running = seen.status.phase is Phase.Running and child.resumed is not None and not child.deleting
    return running and any(pod.phase == "Pending" and not pod.deleting for pod in seen.gang)


def _why(seen: Observed, child: ChildJob) -> str:
    """Who holds the Job, and what is known of the reason."""
    if not child.queue:
        return f"the Job {child.name} was suspended by {child.holder or 'somebody'}"
    return waits_in(child.queue, child.name, seen.hold)
