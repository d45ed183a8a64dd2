"""Gang scheduling: which way an attempt takes, told in a condition, and the group object that its pods wait for.

The group is made right after the Job, which owns it: it goes when the attempt goes. Pods may name a group that is not
there yet. An operator that starts anew makes the groups of gangs that do not run yet once more, and finds them made.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.decision import Create, Decision
from finetune_operator.gangs import GANGS, Gang, known_to
from finetune_operator.objects import pod_group
from finetune_operator.observe import Observed
from finetune_operator.status import Stamp, condition


def ungrouped(seen: Observed, now: datetime) -> Decision | None:  # noqa: ARG001
    """The attempt's Job may have pods, and their group is not known to be there."""
    child, spec = seen.child, seen.spec
    if child is None or spec is None or seen.grouped or seen.status.phase is Phase.Running:
        return None
    kind = seen.offers.groups.get(child.gang)
    if kind is None or child.suspended or child.deleting or child.finished:
        return None
    group = pod_group(seen.job, spec, child, gang=GANGS[child.gang], kind=kind)
    return Decision(status=seen.status, create=(Create(kind, group),), look_again_in=0.0)


def way(seen: Observed, spec: FineTuneJobSpec) -> Gang | None:
    """The one that the next attempt takes. A single pod needs none."""
    gang = known_to(spec)
    return gang if gang and gang.name in seen.offers.groups and spec.max_nodes > 1 else None


def described(seen: Observed, spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """The status with the condition GangScheduled, for more than one pod."""
    if spec.max_nodes == 1:
        return status
    gang, known = way(seen, spec), known_to(spec)
    if gang is not None:
        kind = seen.offers.groups[gang.name]
        message = f"{gang.name}: all pods are scheduled together, by a {kind.kind} of {kind.api_version}"
    elif known is not None:
        message = (
            f"pods are scheduled one by one: the operator finds no {known.kinds[0].group} PodGroup that it may create; "
            "half a gang gives its nodes back after deadlines.startup"
        )
    else:
        message = (
            f"pods are scheduled as {spec.pod.scheduler_name} likes; half a gang gives its nodes back after "
            "deadlines.startup"
        )
    reason = Reason.Grouped if gang else Reason.OneByOne
    stamp = Stamp(seen.job.generation, now)
    return condition(status, "GangScheduled", true=gang is not None, reason=reason, message=message, stamp=stamp)
