"""The coscheduling plugin of scheduler-plugins, chosen by the name under which that scheduler is usually installed."""

from __future__ import annotations

from finetune_operator.kube.resources import POD_GROUP, Raw, Resource

from .gang import Gang, GroupObject, Members

RESERVED_SECONDS = 60
"""For which pods that have found a node keep it while others look for one: two incomplete gangs must not wait for each
other for long."""


def mark(job: Raw, members: Members) -> None:
    job["spec"]["template"]["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] = members.name


def spec(members: Members) -> Raw:
    return {"minMember": members.pods, "scheduleTimeoutSeconds": min(members.seconds, RESERVED_SECONDS)}


COSCHEDULING = Gang(
    name="coscheduling",
    schedulers=frozenset({"scheduler-plugins-scheduler", "coscheduling"}),
    mark=mark,
    group=GroupObject(kinds=(Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", POD_GROUP),), spec=spec),
)
