"""`spec.suspend: true`: the pods checkpoint and end, the nodes are released, the status stays.

The Job goes in the foreground: it is there as long as a pod of it is. Resuming is a new attempt (see start). A job that
was suspended, changed and resumed unnoticed is suspended and resumed all the same: its pods are those of
another manifest.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import Reason
from finetune_api.status import Phase
from finetune_operator.decision import Decision, Event
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition
from finetune_operator.transitions.queue import left_queue


def suspended(seen: Observed, now: datetime) -> Decision | None:
    leftovers = tuple(child for child in seen.children if not child.deleting)
    if seen.status.phase is Phase.Suspended:
        return Decision(status=seen.status, delete=leftovers) if seen.job.suspended else None
    if not seen.job.suspended and not _missed(seen):
        return None
    message = f"Attempt {seen.attempt} stops after a checkpoint" if seen.attempt else "Not started"
    stamp, reason = Stamp(seen.job.generation, now), Reason.Suspended
    status = change(seen.status, phase=Phase.Suspended, start_time=None)
    status = left_queue(status, reason=reason, message=message, stamp=stamp)
    status = condition(status, "Suspended", true=True, reason=reason, message=message, stamp=stamp)
    status = condition(status, "Running", true=False, reason=reason, message=message, stamp=stamp)
    again = None if seen.job.suspended else 0.0
    return Decision(status=status, delete=leftovers, events=(Event(Reason.Suspended, message),), look_again_in=again)


def _missed(seen: Observed) -> bool:
    child = seen.child
    if child is None or child.deleting or seen.unknown:
        return False  # a version that knows other fields has another digest
    if child.pods_digest:
        return child.pods_digest != seen.job.pods_digest
    return child.pods_digest_ordered not in ("", seen.job.pods_digest_ordered)
