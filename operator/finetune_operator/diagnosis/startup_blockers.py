"""Why a gang does not start: what pods that wait, or that cannot be created, show of the reason. Pure.

Nothing here ends a job: what is missing may come.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.failures import Reason
from finetune_api.status import LastFailure
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import failure_of
from finetune_operator.state.views import Pod

PATIENCE = timedelta(seconds=10)
"""In which pods usually are made and find a node."""

PREPARATION = timedelta(seconds=60)
"""In which a container usually is made on its node. Pulling a large image takes longer; it is worth a word then."""

REASONS: dict[str, Reason] = {
    "ErrImagePull": Reason.ImageUnavailable,
    "ImagePullBackOff": Reason.ImageUnavailable,
    "InvalidImageName": Reason.ImageUnavailable,
    "ErrImageNeverPull": Reason.ImageUnavailable,
    "ImageInspectError": Reason.ImageUnavailable,
    "RegistryUnavailable": Reason.ImageUnavailable,
    "SignatureValidationFailed": Reason.ImageUnavailable,
    "CreateContainerConfigError": Reason.ReferenceMissing,
    "CreateContainerError": Reason.SlowStart,
    "RunContainerError": Reason.SlowStart,
}
"""By the kubelet's reason for a container that waits."""


VOLUME_EVENTS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
"""By which the kubelet and the attach controller report a problem with a volume."""

BEING_MADE = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons for which a container waits that say nothing."""

ABSENT = re.compile(r'(secret|configmap|persistentvolumeclaim)s? "[^"]+" not found|references non-existent')

ORDER = (
    Reason.ReferenceMissing,
    Reason.VolumeUnavailable,
    Reason.ImageUnavailable,
    Reason.PodsRefused,
    Reason.Unschedulable,
    Reason.SlowStart,
)
"""Which of several blockers is reported: the one that surely stays."""


@dataclass(frozen=True)
class Blocker:
    failure: LastFailure | None
    wait: float | None = None
    """Seconds until there may be one to report."""


def find_blocker(seen: Observed, now: datetime) -> Blocker:
    """What keeps the present attempt from running, the surest evidence first; else when there may be some."""
    gang = [pod for pod in seen.gang if pod.phase == "Pending"]
    looks = [look for pod in gang for look in (_held(pod, now), _homeless(pod, now), _unprepared(seen, pod, now))]
    found = [look for look in looks if look]
    if missing := _missing(seen, now):
        found.append(missing)
    told = [each for each in found if each.failure is not None]
    if told:
        return min(told, key=lambda each: ORDER.index(Reason(each.failure.reason)) if each.failure else 0)
    return Blocker(None, min((each.wait for each in found if each.wait is not None), default=None))


def _held(pod: Pod, now: datetime) -> Blocker | None:
    reason = REASONS.get(pod.waiting.reason) if pod.waiting else None
    if pod.waiting is None or reason is None:
        return None
    message = f"pod {pod.name} waits: {pod.waiting.reason}: {_plain(pod.waiting.message)}".rstrip(": ")
    return Blocker(_failure(pod, reason, message, now))


def _homeless(pod: Pod, now: datetime) -> Blocker | None:
    if not pod.unschedulable:
        return None
    if (wait := _left(pod.created, PATIENCE, now)) > 0:
        return Blocker(None, wait)
    reason = Reason.ReferenceMissing if ABSENT.search(pod.unschedulable) else Reason.Unschedulable
    return Blocker(_failure(pod, reason, f"no node fits pod {pod.name}: {pod.unschedulable}", now))


def in_preparation(seen: Observed) -> Pod | None:
    """The first pod of the gang that has a node, and of which nothing shows why it does not run."""
    pods = (pod for pod in seen.gang if pod.phase == "Pending" and pod.scheduled is not None and not pod.deleting)
    return next((pod for pod in pods if pod.waiting is None or pod.waiting.reason in BEING_MADE), None)


def _unprepared(seen: Observed, pod: Pod, now: datetime) -> Blocker | None:
    if pod.scheduled is None:
        return None
    told = seen.pod_event if seen.pod_event and seen.pod_event.pod_uid == pod.uid else None
    if told is not None and told.reason in VOLUME_EVENTS and in_preparation(seen) is pod:
        reason = Reason.ReferenceMissing if ABSENT.search(told.message) else Reason.VolumeUnavailable
        return Blocker(_failure(pod, reason, f"pod {pod.name} waits: {told.reason}: {told.message}", now))
    if (wait := _left(pod.scheduled, PREPARATION, now)) > 0:
        return Blocker(None, wait)
    what = f"{told.reason}: {told.message}" if told else "its image, its volumes or its network"
    message = f"pod {pod.name} is still starting on node {pod.node}: {what}"
    return Blocker(_failure(pod, Reason.SlowStart, message, now))


def _missing(seen: Observed, now: datetime) -> Blocker | None:
    child = seen.child
    if child is None or child.deleting or child.suspended or len(seen.gang) >= child.nodes:
        return None
    if seen.pods_refused:
        message = f"{len(seen.gang)} of {child.nodes} pods could be created: {seen.pods_refused}"
        return Blocker(_of(seen.attempt, Reason.PodsRefused, message, now))
    wait = _left(child.wanted_since, PATIENCE, now)
    return Blocker(None, wait) if wait > 0 else None


def lacks_pods(seen: Observed, now: datetime) -> bool:
    """The Job has had time, and not all of its pods are there: its events say why."""
    child = seen.child
    if child is None or child.deleting or child.suspended or child.failing or child.finished:
        return False
    return len(seen.gang) < child.nodes and _left(child.wanted_since, PATIENCE, now) <= 0


def _left(since: datetime | None, patience: timedelta, now: datetime) -> float:
    return (since + patience - now).total_seconds() if since else 0.0


def _plain(message: str) -> str:
    """Without what the kubelet puts in front between two tries: the cause stays the same."""
    _, found, cause = message.partition(": ErrImagePull: ")
    return cause if found else message


def _failure(pod: Pod, reason: Reason, message: str, now: datetime) -> LastFailure:
    failure = _of(pod.attempt, reason, message, now)
    return failure.model_copy(update={"node": pod.node or None})


def _of(attempt: int, reason: Reason, message: str, now: datetime) -> LastFailure:
    return failure_of(reason, message, attempt=attempt, at=now)
