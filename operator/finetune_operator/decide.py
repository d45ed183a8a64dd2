"""What should happen to one job now. PURE: the same observation at the same time gives the same decision.

A Job of an attempt that is over is deleted whatever the story says: a creation may arrive late (see leader).

expired? → finished? → invalid? → suspended? → overdue? → queued? → failed attempt? → fewer nodes? → start an
attempt? → more nodes? → running
"""

from __future__ import annotations

from datetime import datetime

from .decision import Decision
from .observe import Observed
from .policies import STORY, deadline, elastic
from .status import change


def decide(seen: Observed, now: datetime) -> Decision:
    if seen.job.deleting or seen.job.foreign:
        return Decision(status=seen.status)  # what it owns goes with it, or is not ours
    decision = next((d for policy in STORY if (d := policy(seen, now)) is not None), None)
    if decision is None:
        decision = Decision(status=seen.status)
    status = change(decision.status, observed_generation=seen.job.generation)
    late = tuple(c for c in seen.children if c.attempt < seen.attempt and not (c.deleting or c.finished))
    decision = decision.but(delete=(*decision.delete, *(c for c in late if c not in decision.delete)))
    decision = elastic.probed(seen, decision.but(status=status), now)
    wakes = (decision.look_again_in, deadline.wake(seen, status, now), elastic.wake(seen, status, now))
    return decision.but(look_again_in=min((wait for wait in wakes if wait is not None), default=None))
