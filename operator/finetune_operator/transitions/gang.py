"""The gang scheduler of the next attempt, and the condition GangScheduled that says so."""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.gangs import Gang, known_to
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, condition


def chosen_gang(seen: Observed, spec: FineTuneJobSpec) -> Gang | None:
    """The gang scheduler of the next attempt. A single pod needs none."""
    gang = known_to(spec)
    if gang is None or spec.max_nodes == 1:
        return None
    return gang if gang.group is None or gang.name in seen.features.groups else None


def describe_gang(seen: Observed, spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """The status with the condition GangScheduled, for more than one pod."""
    if spec.max_nodes == 1:
        return status
    gang, known = chosen_gang(seen, spec), known_to(spec)
    if gang is not None:
        kind = seen.features.groups.get(gang.name)
        by = f"a {kind.kind} of {kind.api_version}" if kind and gang.group else "annotations on the pods"
        message = f"{gang.name}: all pods are scheduled together, by {by}"
    elif known is not None and known.group is not None:
        message = (
            f"pods are scheduled one by one: the operator finds no {known.group.kinds[0].group} PodGroup that it may "
            "create; a gang that stays incomplete releases its nodes after deadlines.startup"
        )
    else:
        message = (
            f"{spec.pod.scheduler_name} is not a gang scheduler that the operator knows: a gang that stays incomplete "
            "releases its nodes after deadlines.startup"
        )
    reason = Reason.Grouped if gang else Reason.OneByOne
    stamp = Stamp(seen.job.generation, now)
    return condition(status, "GangScheduled", true=gang is not None, reason=reason, message=message, stamp=stamp)
