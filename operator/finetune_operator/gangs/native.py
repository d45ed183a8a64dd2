"""Kubernetes' own PodGroup, an alpha of 1.36: the scheduler holds the pods that name a group until all fit."""

from __future__ import annotations

from finetune_operator.kube.resources import POD_GROUP, Raw, Resource

from .gang import DEFAULT_SCHEDULER, Gang, GroupObject, Members


def mark(job: Raw, members: Members) -> None:
    job["spec"]["template"]["spec"]["schedulingGroup"] = {"podGroupName": members.name}


def spec(members: Members) -> Raw:
    return {"schedulingPolicy": {"gang": {"minCount": members.pods}}}


VERSIONS = ("v1beta1", "v1alpha2")
KINDS = tuple(Resource("scheduling.k8s.io", version, "podgroups", POD_GROUP) for version in VERSIONS)

NATIVE = Gang(
    name="native",
    schedulers=frozenset({DEFAULT_SCHEDULER}),
    mark=mark,
    group=GroupObject(kinds=KINDS, spec=spec),
)
