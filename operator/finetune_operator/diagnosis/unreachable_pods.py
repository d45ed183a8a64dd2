"""Pods of an earlier attempt for which the next one waits, and those for which it does not. Pure.

Two attempts never train at once, so the next waits until all pods of the last have ended. A pod on a node that fell
silent never says that it has: it was deleted, and stays. For all that is known it runs still. So it is not waited
for only when it cannot do anything: another pod of its gang has ended, without which no step can be made, and the time
by which it should have ended is over by minutes. Everything else is waited for until the API server says that it is
gone: a gang that is silent as a whole, the single pod above all, and a script of the user's own, which may need no
other. Kubernetes says so by itself when the Node goes, or gets the taint node.kubernetes.io/out-of-service.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from finetune_api.spec import FineTuneJobSpec
from finetune_operator.state.views import ChildJob, Pod

PATIENCE = timedelta(minutes=5)
"""Beyond the time by which a pod should have ended. A node that restarts is back by then, and ends it."""


def awaited(
    pods: Iterable[Pod], children: Iterable[ChildJob], spec: FineTuneJobSpec | None, now: datetime
) -> tuple[Pod, ...]:
    """Those that must end before another attempt may begin."""
    unfinished = [pod for pod in pods if pod.unfinished]
    return tuple(pod for pod in unfinished if not _given_up(pod, unfinished, tuple(children), spec, now))


def given_up_at(pod: Pod) -> datetime | None:
    """From when on a pod is not waited for, if its gang cannot continue; None if its node reports."""
    silent = pod.unreachable or (pod.phase == "Pending" and bool(pod.node))
    return pod.ends + PATIENCE if silent and pod.ends is not None else None


def _given_up(
    pod: Pod, unfinished: list[Pod], children: tuple[ChildJob, ...], spec: FineTuneJobSpec | None, now: datetime
) -> bool:
    at = given_up_at(pod)
    if at is None or now < at or spec is None or spec.command:
        return False
    size = next((child.nodes for child in children if child.attempt == pod.attempt), 0)
    return sum(other.attempt == pod.attempt for other in unfinished) < size
