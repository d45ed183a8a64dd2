"""The admin's policy: a job that asks for what it does not allow waits, with the reason, and nothing of it is lost.

Judged before each attempt, and never while one runs: a policy that becomes stricter ends no training. A policy is read
when the operator starts, and starting looks at all jobs: those that a new one allows continue by themselves.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import Reason
from finetune_api.status import Phase
from finetune_operator.decision import Decision
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import change, clip, failure_of
from finetune_operator.transitions.blocked import report_blocker


def violated(seen: Observed, now: datetime) -> Decision | None:
    resuming = seen.status.phase is Phase.Suspended
    if not seen.violations or (seen.child is not None and not resuming):
        return None
    message = "; ".join(map(str, seen.violations))
    failure = failure_of(Reason.PolicyViolated, message, attempt=max(seen.attempt, 1), at=now)
    hints = " ".join(dict.fromkeys(each.hint for each in seen.violations))
    failure = failure.model_copy(update={"hint": clip(f"{hints} {failure.hint}")})
    decision = report_blocker(seen, failure, now)
    return decision.but(status=change(decision.status, phase=seen.status.phase or Phase.Pending))
