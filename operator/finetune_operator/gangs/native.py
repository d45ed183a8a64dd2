"""Kubernetes' own PodGroup, an alpha of 1.36: the scheduler holds the pods that name a group until all fit."""

from __future__ import annotations

from finetune_operator.resources import POD_GROUP, Raw, Resource

from .gang import DEFAULT_SCHEDULER, Gang


def mark(template: Raw, group: str) -> None:
    template["spec"]["schedulingGroup"] = {"podGroupName": group}


def spec(pods: int, seconds: int) -> Raw:  # noqa: ARG001
    return {"schedulingPolicy": {"gang": {"minCount": pods}}}


NATIVE = Gang(
    name="native",
    schedulers=frozenset({DEFAULT_SCHEDULER}),
    kinds=tuple(Resource("scheduling.k8s.io", version, "podgroups", POD_GROUP) for version in ("v1beta1", "v1alpha2")),
    mark=mark,
    spec=spec,
)
