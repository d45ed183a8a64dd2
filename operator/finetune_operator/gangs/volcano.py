"""Volcano, chosen by `pod.schedulerName: volcano`."""

from __future__ import annotations

from finetune_operator.resources import POD_GROUP, Raw, Resource

from .gang import Gang


def mark(template: Raw, group: str) -> None:
    template["metadata"]["annotations"]["scheduling.k8s.io/group-name"] = group


def spec(pods: int, seconds: int) -> Raw:  # noqa: ARG001
    return {"minMember": pods}


VOLCANO = Gang(
    name="volcano",
    schedulers=frozenset({"volcano"}),
    kinds=(Resource("scheduling.volcano.sh", "v1beta1", "podgroups", POD_GROUP),),
    mark=mark,
    spec=spec,
)
