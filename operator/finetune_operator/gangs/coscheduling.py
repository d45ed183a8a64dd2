"""The coscheduling plugin of scheduler-plugins, chosen by the name under which that scheduler is usually installed."""

from __future__ import annotations

from finetune_operator.resources import POD_GROUP, Raw, Resource

from .gang import Gang


def mark(template: Raw, group: str) -> None:
    template["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] = group


HOLD = 60
"""Seconds for which pods that have found a node keep it while others look for theirs: two half gangs must not wait for
each other for long."""


def spec(pods: int, seconds: int) -> Raw:
    return {"minMember": pods, "scheduleTimeoutSeconds": min(seconds, HOLD)}


COSCHEDULING = Gang(
    name="coscheduling",
    schedulers=frozenset({"scheduler-plugins-scheduler", "coscheduling"}),
    kinds=(Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", POD_GROUP),),
    mark=mark,
    spec=spec,
)
