"""A suspended Job: its queue has not admitted it yet, or has preempted it.

`spec.queueName` makes the attempt's Job suspended, with the label by which Kueue finds it; Kueue lets it go when there
is quota. A preempted Job is suspended again: its pods checkpoint and end, and the same attempt waits for its next turn,
in the place that its queue gives it. Nothing here lets a Job go. While it is held no deadline runs and nothing that
its pods do is a failure. A rung of a ladder that is larger than all of its queue's quota is given up, since the ladder
can publish an earlier one: once Kueue has said so for `deadlines.startup`, because the quota may be raised.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api import durations
from finetune_api.failures import Reason
from finetune_api.status import Phase
from finetune_operator.decision import Decision, Event
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition, failure_of, rfc3339
from finetune_operator.state.views import ChildJob
from finetune_operator.transitions.ladder import give_up
from finetune_operator.transitions.queue import left_queue, queued, waits_in

UP = (Phase.Starting, Phase.Running)


def held(seen: Observed, now: datetime) -> Decision | None:
    """The attempt's Job is suspended, and not by `spec.suspend`."""
    child, phase = seen.child, seen.status.phase
    if child is None or phase is Phase.Suspended:
        return None
    if not child.held:
        return _preempted(seen, child, now).but(look_again_in=0.0) if _begun_anew(seen, child) else None
    if phase in UP:
        return _preempted(seen, child, now)
    waits = Decision(status=queued(seen, seen.status, why=_why(seen, child), now=now))
    if seen.spec is None or seen.queue_since is None or not _exceeds_quota(seen):
        return waits
    patience = durations.seconds(seen.spec.deadlines.startup)
    left = patience - (now - seen.queue_since).total_seconds()
    if left > 0:
        return waits.but(look_again_in=left)
    message = f"the queue {child.queue} cannot admit it within {seen.spec.deadlines.startup}: {seen.queue_message}"
    failure = failure_of(Reason.PodsRefused, message, attempt=seen.attempt, at=now)
    return give_up(seen, failure, now) or waits


def admitted(seen: Observed, now: datetime) -> Decision | None:
    """It was held, and is not any more."""
    child = seen.child
    if seen.status.phase is not Phase.Queued or child is None or child.held or child.deleting:
        return None
    message = f"Attempt {seen.attempt} may start"
    status = change(seen.status, phase=Phase.Pending, start_time=rfc3339(now))
    status = left_queue(status, reason=Reason.Admitted, message=message, stamp=Stamp(seen.job.generation, now))
    stamp = Stamp(seen.job.generation, now)
    status = condition(status, "Running", true=False, reason=Reason.GangCreated, message=message, stamp=stamp)
    return Decision(status=status, events=(Event(Reason.Admitted, message),), look_again_in=0.0)


def _preempted(seen: Observed, child: ChildJob, now: datetime) -> Decision:
    """Not a restart, and free: the attempt continues when the queue admits it again."""
    message = f"the nodes of attempt {seen.attempt} were released: {_why(seen, child)}"
    failure = failure_of(Reason.Preempted, message, attempt=seen.attempt, at=now)
    status = queued(seen, change(seen.status, last_failure=failure), why=_why(seen, child), now=now)
    return Decision(status=status, events=(Event(Reason.Preempted, message, "Warning"),))


def _exceeds_quota(seen: Observed) -> bool:
    """Of a rung with pods of its own: Kueue says of each flavor that the request exceeds all of its quota, also that
    which others use now. Its words: "insufficient quota for …, request > maximum capacity (5 > 4)"."""
    if seen.whole is None or not seen.whole.ladder.overrides:
        return False
    said = seen.queue_message
    return 0 < said.count("insufficient ") == said.count("> maximum capacity")


def _begun_anew(seen: Observed, child: ChildJob) -> bool:
    """It was suspended and resumed unnoticed: otherwise a gang that runs has no pods that never ran."""
    running = seen.status.phase is Phase.Running and child.resumed is not None and not child.deleting
    return running and any(pod.phase == "Pending" and not pod.deleting for pod in seen.gang)


def _why(seen: Observed, child: ChildJob) -> str:
    """Who holds the Job, and what is known of the reason."""
    who = child.holder or "somebody"
    if child.scaled_to is not None:
        return (
            f"the Job {child.name} may have {child.scaled_to} of {child.nodes} pods, by its parallelism, "
            f"which {who} set: set spec.parallelism to {child.nodes}, or delete the Job"
        )
    if not child.queue:
        return f"the Job {child.name} was suspended by {who}"
    return waits_in(child.queue, child.name, seen.queue_message)
