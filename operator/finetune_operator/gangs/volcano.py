"""Volcano, chosen by `pod.schedulerName: volcano`."""

from __future__ import annotations

from finetune_operator.kube.resources import POD_GROUP, Raw, Resource

from .gang import Gang, GroupObject, Members


def mark(job: Raw, members: Members) -> None:
    job["spec"]["template"]["metadata"]["annotations"]["scheduling.k8s.io/group-name"] = members.name


def spec(members: Members) -> Raw:
    return {"minMember": members.pods}


VOLCANO = Gang(
    name="volcano",
    schedulers=frozenset({"volcano"}),
    mark=mark,
    group=GroupObject(kinds=(Resource("scheduling.volcano.sh", "v1beta1", "podgroups", POD_GROUP),), spec=spec),
)
