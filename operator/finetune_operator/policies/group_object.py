"""The group object that the pods of an attempt wait for, where its gang scheduler has one.

It is created right after the Job, which owns it, and is deleted with it. Pods may name a group that does not exist yet.
An operator that has restarted creates the groups of gangs that do not run yet again, and finds that they exist.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.status import Phase
from finetune_operator.decision import Create, Decision
from finetune_operator.gangs import GANGS
from finetune_operator.objects import pod_group
from finetune_operator.state.observe import Observed


def ungrouped(seen: Observed, now: datetime) -> Decision | None:  # noqa: ARG001
    """The attempt's Job may have pods, and their group is not known to be there."""
    child, spec = seen.child, seen.spec
    if child is None or spec is None or seen.grouped or seen.status.phase is Phase.Running:
        return None
    gang, kind = GANGS.get(child.gang), seen.features.groups.get(child.gang)
    if gang is None or gang.group is None or kind is None:
        return None
    if child.suspended or child.deleting or child.finished:
        return None
    group = pod_group(seen.job, spec, child, group=gang.group, kind=kind)
    return Decision(status=seen.status, create=(Create(kind, group),), look_again_in=0.0)
