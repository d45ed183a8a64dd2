"""What a failure means: another attempt, or the end.

The failure's class decides, each with its own budget (finetune_api.budget). The whole gang restarts, by raising
`status.attempt` first and deleting the old Job then; the new Job is made when no pod of the old one runs any more (see
start).
"""

from __future__ import annotations

from datetime import datetime

from finetune_api import names
from finetune_api.status import Phase
from finetune_operator.decision import Decision
from finetune_operator.diagnosis.root_cause import blame, lost
from finetune_operator.state.observe import Observed
from finetune_operator.transitions.queue import excused
from finetune_operator.transitions.restart import end_as_invalid, restart_or_end


def invalid(seen: Observed, now: datetime) -> Decision | None:
    """A spec that slipped through the schema. One that only a newer operator understands is `held`."""
    if seen.spec is not None or seen.unknown:
        return None
    return end_as_invalid(seen, seen.problem, now)


def failed(seen: Observed, now: datetime) -> Decision | None:
    spec, child, phase = seen.spec, seen.child, seen.status.phase
    if spec is None or phase is Phase.Suspended:
        return None  # what ends while the job is suspended ends because of that
    was_up = phase in (Phase.Starting, Phase.Running)
    if child is None and not was_up:
        return None  # not made yet
    ran = phase is Phase.Running
    verdict = blame(seen.gang, child, gone=seen.gone, ran=ran, now=now)
    if verdict is None and (child is None or child.deleting):
        name = names.attempt_name(seen.job.name, seen.attempt)
        return restart_or_end(seen, spec, lost(name, attempt=seen.attempt, ran=ran, now=now), now)
    if verdict is None:
        return None
    if verdict.wait:
        return Decision(status=seen.status, look_again_in=verdict.wait)
    return restart_or_end(seen, spec, excused(seen, spec, verdict.failure), now)
