"""`spec.suspend: true`: the pods checkpoint and end, the nodes are given back, the status stays.

The Job goes in the foreground: it is there as long as a pod of it is. Resuming is a new attempt (see start).
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import Reason
from finetune_api.status import Phase
from finetune_operator.decision import Decision, Event
from finetune_operator.observe import Observed
from finetune_operator.status import Stamp, change, condition


def suspended(seen: Observed, now: datetime) -> Decision | None:
    if not seen.job.suspended:
        return None
    leftovers = tuple(child for child in seen.children if not child.deleting)
    if seen.status.phase is Phase.Suspended:
        return Decision(status=seen.status, delete=leftovers)
    message = f"Attempt {seen.attempt} stops after a checkpoint" if seen.attempt else "Not started"
    stamp, reason = Stamp(seen.job.generation, now), Reason.Suspended
    status = change(seen.status, phase=Phase.Suspended, start_time=None)
    status = condition(status, "Suspended", true=True, reason=reason, message=message, stamp=stamp)
    status = condition(status, "Running", true=False, reason=reason, message=message, stamp=stamp)
    return Decision(status=status, delete=leftovers, events=(Event(Reason.Suspended, message),))
