"""NVIDIA KAI Scheduler, chosen by `pod.schedulerName: kai-scheduler`.

KAI's pod-grouper creates a group of one for the pods of a Job, and looks at its topmost owner, which is a FineTuneJob
that it does not know. So the operator creates the group, as its page says under "External PodGroups":
https://github.com/kai-scheduler/KAI-Scheduler/blob/main/docs/batch/README.md. The queue is the one that the pods' label
`kai.scheduler/queue` names, else the one that KAI creates when it is installed.
"""

from __future__ import annotations

from finetune_operator.kube.resources import POD_GROUP, Raw, Resource

from .gang import Gang, GroupObject, Members

QUEUE_LABEL = "kai.scheduler/queue"
DEFAULT_QUEUE = "default-queue"
SKIP_POD_GROUPER = {"kai.scheduler/skip-podgrouper": "true"}


def mark(job: Raw, members: Members) -> None:
    job["metadata"]["annotations"] |= SKIP_POD_GROUPER
    template = job["spec"]["template"]["metadata"]
    template["annotations"] |= SKIP_POD_GROUPER | {"pod-group-name": members.name}
    template["labels"].setdefault(QUEUE_LABEL, DEFAULT_QUEUE)


def spec(members: Members) -> Raw:
    return {"minMember": members.pods, "queue": members.labels.get(QUEUE_LABEL, DEFAULT_QUEUE)}


KAI = Gang(
    name="kai",
    schedulers=frozenset({"kai-scheduler"}),
    mark=mark,
    group=GroupObject(kinds=(Resource("scheduling.run.ai", "v2alpha2", "podgroups", POD_GROUP),), spec=spec),
)
