"""Nodes on which attempts fail again and again, and how the following attempts keep away from them. Pure.

One failure is not a pattern. From the second within an hour on, attempts avoid the node for an hour. Where the gang had
other nodes too, no pod may run there; else the scheduler only prefers others, because there may be none.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from finetune_api.failures import CLASSES, NODE_NOT_TO_BLAME
from finetune_api.status import AvoidedNode, LastFailure
from finetune_operator.state.status import rfc3339
from finetune_operator.state.views import parse_time

WINDOW = timedelta(hours=1)
"""Between two failures that are seen as one pattern, and for how long the node is avoided then."""

PATTERN = 2
"""Failures."""

AT_MOST = 16

Avoided = tuple[AvoidedNode, ...]


def after(known: Avoided, failure: LastFailure, *, elsewhere: bool, now: datetime) -> Avoided | None:
    """With this failure, and without what is past; None for nothing. `elsewhere`: the gang had other nodes too."""
    kept = [each for each in known if _ago(each.last_failure_time, now) < WINDOW or active(each, now)]
    if failure.node and may_blame_node(failure):
        before = next((each.failures for each in kept if each.name == failure.node), 0)
        guilty = before + 1 >= PATTERN
        entry = AvoidedNode(
            name=failure.node,
            failures=before + 1,
            last_failure_time=rfc3339(now),
            until=rfc3339(now + WINDOW) if guilty else None,
            required=True if guilty and elsewhere else None,
        )
        kept = [each for each in kept if each.name != failure.node] + [entry]
    return tuple(kept[-AT_MOST:]) or None


def may_blame_node(failure: LastFailure) -> bool:
    return CLASSES[failure.failure_class].blames_node and failure.reason not in NODE_NOT_TO_BLAME


def active(node: AvoidedNode, now: datetime) -> bool:
    until = parse_time(node.until)
    return until is not None and until > now


def affinity(given: dict[str, Any] | None, avoided: Avoided, now: datetime) -> dict[str, Any] | None:
    """The user's affinity, and away from these nodes."""
    there = [each for each in avoided if active(each, now)]
    strictly = [_not_on(each.name) for each in there if each.required]
    rather_not = [{"weight": 100, "preference": {"matchFields": [_not_on(each.name)]}} for each in there]
    if not there:
        return given
    result = dict(given or {})
    node = dict(result.get("nodeAffinity") or {})
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    node[preferred] = [*(node.get(preferred) or ()), *rather_not]
    if strictly:
        required = "requiredDuringSchedulingIgnoredDuringExecution"
        terms = (node.get(required) or {}).get("nodeSelectorTerms") or [{}]
        node[required] = {"nodeSelectorTerms": [_and(term, strictly) for term in terms]}
    return {**result, "nodeAffinity": node}


def _and(term: dict[str, Any], fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {**term, "matchFields": [*(term.get("matchFields") or ()), *fields]}


def _not_on(node: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": "NotIn", "values": [node]}


def _ago(time: str, now: datetime) -> timedelta:
    return now - (parse_time(time) or now)
