"""The admin's policy: a job that asks for what it does not allow waits, with the reason, and nothing of it is lost.

Judged before each attempt, and never while one runs: a policy that becomes stricter ends no training. A policy is read
when the operator starts, and starting looks at all jobs: those that a new one allows continue by themselves.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.admin_policy import violations
from finetune_api.failures import Reason
from finetune_api.rung_pods import without_rung
from finetune_api.status import Phase
from finetune_operator.decision import Decision
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import change, clip, failure_of
from finetune_operator.transitions.blocked import report_blocker
from finetune_operator.transitions.ladder import give_up


def violated(seen: Observed, now: datetime) -> Decision | None:
    resuming = seen.status.phase is Phase.Suspended
    if not seen.violations or (seen.child is not None and not resuming):
        return None
    message = "; ".join(map(str, seen.violations))
    failure = failure_of(Reason.PolicyViolated, message, attempt=max(seen.attempt, 1), at=now)
    hints = " ".join(dict.fromkeys(each.hint for each in seen.violations))
    failure = failure.model_copy(update={"hint": clip(f"{hints} {failure.hint}")})
    if not resuming and _only_of_rung(seen) and (after := give_up(seen, failure, now)) is not None:
        return after
    decision = report_blocker(seen, failure, now)
    return decision.but(status=change(decision.status, phase=seen.status.phase or Phase.Pending))


def _only_of_rung(seen: Observed) -> bool:
    """The policy allows the ladder without the pods of the rung that is next."""
    if seen.whole is None or seen.rung is None:
        return False
    return not violations(seen.defaults.policy.of(seen.job.namespace), without_rung(seen.whole, seen.rung))
