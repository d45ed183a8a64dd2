"""What should happen to one job now. PURE: the same observation at the same time gives the same decision.

A Job whose pods nobody else ends is deleted whatever the story says: of an attempt that is over, because a creation may
arrive late (see leader), and of a job that has failed though none of its pods did.

expired? → finished? → invalid? → suspended? → overdue? → queued? → failed attempt? → fewer nodes? → start an
attempt? → more nodes? → running
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.status import FineTuneJobStatus, Phase

from .decision import Decision
from .evidence import hear
from .observe import Observed
from .policies import STORY, deadline, elastic
from .status import change
from .views import ChildJob


def decide(seen: Observed, now: datetime) -> Decision:
    if seen.job.deleting or seen.job.foreign:
        return Decision(status=seen.status)  # what it owns goes with it, or is not ours
    decision = next((d for policy in STORY if (d := policy(seen, now)) is not None), None)
    if decision is None:
        decision = Decision(status=seen.status)
    status = change(decision.status, observed_generation=seen.job.generation)
    useless = (c for c in seen.children if _outlives(c, seen, status) and c not in decision.delete)
    decision = decision.but(delete=(*decision.delete, *useless))
    decision = elastic.probed(seen, decision.but(status=status), now)
    wakes = (decision.look_again_in, deadline.wake(seen, status, now), elastic.wake(seen, status, now))
    return decision.but(look_again_in=min((wait for wait in wakes if wait is not None), default=None))


def _outlives(child: ChildJob, seen: Observed, status: FineTuneJobStatus) -> bool:
    """Where a pod failed, the Job controller ends the others and the Job stays, with the logs."""
    if child.deleting or child.finished:
        return False
    broken = child.failing or any(hear(pod) for pod in seen.pods if pod.attempt == child.attempt)
    return child.attempt < seen.attempt or (status.phase is Phase.Failed and not broken)
