"""Apache YuniKorn, chosen by `pod.schedulerName: yunikorn`. It has no group object: each pod carries the whole gang's
description, from which YuniKorn creates placeholder pods that reserve the nodes.

Annotations, and what they must hold: https://yunikorn.apache.org/docs/user_guide/gang_scheduling; the application's ID:
https://yunikorn.apache.org/docs/user_guide/labels_and_annotations_in_yunikorn. A task group is a copy of what the pods
ask for, because the placeholders must fit where the pods do. `Hard` keeps half a gang from being scheduled pod by pod
once the time is over; without it YuniKorn falls back to that.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from finetune_operator.kube.resources import Raw

from .gang import Gang, Members

PREFIX = "yunikorn.apache.org"
TASK_GROUP = "workers"
"""Name of the one group: it need be unique only within an application."""

LONGEST_LABEL = 63

COPIED = ("nodeSelector", "tolerations", "affinity")
"""Fields of a pod that decide on its node, besides what it requests."""


def mark(job: Raw, members: Members) -> None:
    template = job["spec"]["template"]
    template["metadata"]["annotations"] |= {
        f"{PREFIX}/app-id": _application(members),
        f"{PREFIX}/task-group-name": TASK_GROUP,
        f"{PREFIX}/task-groups": json.dumps([_task_group(template["spec"], members)]),
        f"{PREFIX}/schedulingPolicyParameters": (
            f"placeholderTimeoutInSeconds={members.seconds} gangSchedulingStyle=Hard"
        ),
    }


def _application(members: Members) -> str:
    """Unique in the cluster, for a namespace has no dots. YuniKorn makes it a label of its placeholder pods."""
    name = f"{members.namespace}.{members.name}"
    if len(name) <= LONGEST_LABEL:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST_LABEL - 1 - len(digest)]}-{digest}"


def _task_group(pod: Raw, members: Members) -> dict[str, Any]:
    resources = pod["containers"][0].get("resources", {})
    requested = {**resources.get("limits", {}), **resources.get("requests", {})}  # a limit alone is also a request
    quantities = {name: str(quantity) for name, quantity in requested.items()}
    copied = {name: pod[name] for name in COPIED if name in pod}
    return {"name": TASK_GROUP, "minMember": members.pods, "minResource": quantities, **copied}


YUNIKORN = Gang(name="yunikorn", schedulers=frozenset({"yunikorn"}), mark=mark)
