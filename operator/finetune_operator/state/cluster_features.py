"""What the cluster offers beyond plain Jobs, found by discovery: optional kinds that are served and that we may use.

Each needs rights of its own (operator/rbac-gang.yaml). Where kind or rights are missing, the operator does without.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from finetune_operator.gangs import GANGS
from finetune_operator.kube.client import NotFound
from finetune_operator.kube.resources import REVIEWS, Raw, Resource

logger = logging.getLogger(__name__)

WORKLOADS = tuple(Resource("kueue.x-k8s.io", version, "workloads", "Workload") for version in ("v1beta2", "v1beta1"))
"""What Kueue makes of a Job, newest version first."""


class Server(Protocol):
    """What discovery asks of the API server."""

    async def discover(self, path: str) -> Raw: ...

    async def ask(self, path: str, body: Raw) -> Raw: ...


@dataclass(frozen=True)
class ClusterFeatures:
    workloads: Resource | None = None
    """Readable: why Kueue does not admit a Job."""
    groups: Mapping[str, Resource] = field(default_factory=dict)
    """By the name of a gang scheduler, the group object that we may create."""


async def discover_features(server: Server, namespaces: Sequence[str]) -> ClusterFeatures:
    """Raises ApiError, if it cannot be found out now."""
    groups = {}
    for gang in GANGS.values():
        if gang.group and (kind := await first(server, gang.group.kinds, namespaces, verbs=("create", "get"))):
            groups[gang.name] = kind
    return ClusterFeatures(workloads=await first(server, WORKLOADS, namespaces, verbs=("list",)), groups=groups)


async def first(
    server: Server, kinds: Sequence[Resource], namespaces: Sequence[str], *, verbs: Sequence[str]
) -> Resource | None:
    """The first of these that is served, and that the operator may use so in all namespaces that it watches."""
    for kind in kinds:
        if not await _served(server, kind):
            continue
        for namespace in namespaces or ("",):
            for verb in verbs:
                if not await _allowed(server, kind, namespace, verb):
                    where = f"in {namespace}" if namespace else "in all namespaces"
                    logger.info(
                        "%s.%s is served, but the operator may not %s it %s", kind.plural, kind.group, verb, where
                    )
                    return None
        return kind
    return None


async def _served(server: Server, kind: Resource) -> bool:
    try:
        listed = await server.discover(f"/apis/{kind.api_version}")
    except NotFound:
        return False
    return any(each["name"] == kind.plural for each in listed.get("resources", ()))


async def _allowed(server: Server, kind: Resource, namespace: str, verb: str) -> bool:
    wanted = {"namespace": namespace, "verb": verb, "group": kind.group, "resource": kind.plural}
    body = {
        "apiVersion": REVIEWS.api_version,
        "kind": REVIEWS.kind,
        "spec": {"resourceAttributes": {key: value for key, value in wanted.items() if value}},
    }
    answer = await server.ask(REVIEWS.path(), body)
    return bool(answer.get("status", {}).get("allowed"))
