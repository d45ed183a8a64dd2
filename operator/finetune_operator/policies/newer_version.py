"""Versions that differ (see version_skew): what this operator does not understand is left for one that does.

of the status, the phase or the attempt   nothing is done at all: it cannot be known how far the job is
of the spec                               an attempt that runs continues: a version that understood made it. No other
                                          is made, for it would train something else than was asked for
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator import __version__
from finetune_operator.decision import Decision, Event
from finetune_operator.diagnosis.root_cause import evidence_of
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition, find

VERSION = f"finetune-operator {__version__}"


def by_its_status(seen: Observed, now: datetime) -> Decision | None:
    what = seen.job.strange_status
    if not what:
        return None
    return _told(seen, f"{VERSION} does not know {what}, which another version wrote: the job is left unchanged", now)


def by_its_spec(seen: Observed, now: datetime) -> Decision | None:
    if not seen.unknown or _goes_on(seen):
        return None
    message = (
        f"{VERSION} does not know all fields of this job, and creates no attempt without them: {seen.unknown}. "
        "Upgrade the operator to the CRD's version, or create the job without it"
    )
    decision, stamp = _told(seen, message, now), Stamp(seen.job.generation, now)
    status = change(decision.status, phase=seen.status.phase or Phase.Pending)
    reason = Reason.NotUnderstood
    return decision.but(status=condition(status, "Running", true=False, reason=reason, message=message, stamp=stamp))


def released(seen: Observed, status: FineTuneJobStatus) -> FineTuneJobStatus:
    """Without the condition, once all is understood."""
    if find(status, "Held") is None or seen.unknown or seen.job.strange_status:
        return status
    return change(status, conditions=tuple(each for each in status.conditions if each.type != "Held"))


def _goes_on(seen: Observed) -> bool:
    """An attempt runs or starts. Without a spec that can be read it is unknown what follows when it fails."""
    child = seen.child
    if child is None or seen.status.phase is Phase.Suspended or seen.status.attempt is None:
        return False
    failed = child.failing or child.finished or child.deleting or any(evidence_of(pod) for pod in seen.gang)
    return seen.spec is not None or not failed


def _told(seen: Observed, message: str, now: datetime) -> Decision:
    stamp, reason = Stamp(seen.job.generation, now), Reason.NotUnderstood
    status = condition(seen.status, "Held", true=True, reason=reason, message=message, stamp=stamp)
    return Decision(status=status, events=() if status is seen.status else (Event(reason, message, "Warning"),))
