"""Which pod failed first, and why: the root cause of a failed attempt.

The evidence of a pod is, in this order: a disruption that Kubernetes announced, its termination message, the kubelet's
reason, its exit code. In a gang most failures are echoes: a lost connection (PeerLost), or a stop asked for because
another pod had failed (Interrupted); the class's record says so (finetune_api.classes). An echo is believed only when
no pod with a cause of its own has ended, or could still."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from finetune_api.classes import Echo
from finetune_api.failures import CLASSES, Reason, class_of, default_reason, hint_of
from finetune_api.status import LastFailure
from finetune_operator.state.status import clip, failure_of, rfc3339
from finetune_operator.state.views import ChildJob, Ended, Pod, parse_time

PATIENCE = timedelta(seconds=5)
"""How long an echo waits for the root cause to be reported."""

ENDING = timedelta(seconds=60)
"""For which a Job that has failed is waited for to end its pods, and then beyond the time that these have to end."""

AGAIN = 5.0
"""Seconds between two looks at pods that should end."""

LATE = timedelta(seconds=10)
"""For which a watch may still report how the pods of a failed Job ended, although the API server no longer has them."""

LATEST = datetime.max.replace(tzinfo=UTC)

DISRUPTIONS = {
    "PreemptionByScheduler": "it was preempted by a pod of higher priority",
    "EvictionByEvictionAPI": "it was evicted, for example because its node was drained",
    "DeletionByTaintManager": "its node has a taint that it does not tolerate",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node shut down, or ran short of memory or disk",
}
"""What the reasons of a DisruptionTarget condition mean."""

GIVEN_BACK = frozenset({"Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated", "NodeLost"})
"""Reasons in a pod's status for which a node evicts it."""

TURNED_AWAY = frozenset({"NodeAffinity", "NodePorts", "NodeName", "TaintToleration", "Terminated", "Preempting"})
"""Reasons, besides OutOf…, for which a kubelet turns a pod away that never ran: the node changed since the scheduler
chose it. UnexpectedAdmissionError is none of them: a device that is not to be had where it was promised is a fault of
the node, which is counted and avoided."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one pod says about the failure."""

    failure: LastFailure
    at: datetime
    echo: Echo


@dataclass(frozen=True)
class Verdict:
    failure: LastFailure
    wait: float
    """Seconds in which a better explanation may still come; 0: this is it."""


def blame(
    gang: Iterable[Pod], child: ChildJob | None, *, gone: Iterable[Pod] = (), ran: bool = False, now: datetime
) -> Verdict | None:
    """The root cause of a failed attempt; None while nothing failed. `gone`: pods that failed and were deleted.
    `ran`: all pods of the attempt were running at some time."""
    pods = tuple(gang)
    told = _told(pods, now)
    if (told and told[0].echo) or any(pod.unreachable and pod.deleting for pod in pods):
        told = [*_unreachable(pods, now), *told]
    if told:
        first = told[0]
        all_ended = child is None or child.finished or sum(p.over for p in pods) >= child.nodes
        if first.echo == 0 or all_ended:
            return Verdict(first.failure, 0.0)
        since = (child.failed_at if child else None) or min((t.at for t in told if t.at is not LATEST), default=now)
        return Verdict(first.failure, max(0.0, (since + PATIENCE - now).total_seconds()))
    if (child is None or child.failing) and (told := _told(gone, now)):
        return Verdict(told[0].failure, 0.0)
    if child is not None and child.failing:
        return _unexplained(pods, child, ran=ran, now=now)
    return None


def _unexplained(pods: tuple[Pod, ...], child: ChildJob, *, ran: bool, now: datetime) -> Verdict:
    """Its Job failed, and no pod said why. A pod that fails stays, so where none is left they were deleted, which
    costs an attempt that ran nothing (`lost`)."""
    what = f"the Job {child.name} failed, and no pod is left to report why: {child.message}"
    reason = Reason.Interrupted if ran and not pods else Reason.PodLost
    failure = failure_of(reason, what, attempt=child.attempt, at=now)
    if pods:
        return Verdict(failure, AGAIN if any(_may_speak(pod, child, now) for pod in pods) else 0.0)
    late = min(child.failed_at + LATE - now, LATE) if child.failed_at else timedelta()
    return Verdict(failure, max(0.0, late.total_seconds()))


def _told(pods: Iterable[Pod], now: datetime) -> list[Evidence]:
    return sorted((t for pod in pods if (t := evidence_of(pod, now))), key=lambda t: (t.echo, t.at))


def _may_speak(pod: Pod, child: ChildJob, now: datetime) -> bool:
    """Its Job has failed, so it will end, and say how."""
    until = pod.ends or child.failed_at
    return not pod.over and not pod.unreachable and until is not None and now < until + ENDING


def _unreachable(pods: Iterable[Pod], now: datetime) -> list[Evidence]:
    """For pods whose node does not report: they cannot report either, and explain what the others report."""
    found = []
    for pod in pods:
        if pod.unreachable and pod.unfinished:
            message = f"the node {pod.node} of pod {pod.name} does not report any more"
            at = _within(pod, pod.disrupted, now)
            found.append(Evidence(failure=_of(pod, Reason.NodeLost, message, at=at), at=at, echo=Echo.NONE))
    return found


def lost(child_name: str, *, attempt: int, ran: bool, now: datetime) -> LastFailure:
    """The attempt's Job was deleted, and not by the operator. That costs a run nothing which may even have finished
    before its Job was cleaned up: its next attempt finds the artifact."""
    reason = Reason.Interrupted if ran else Reason.PodLost
    return failure_of(reason, f"the Job {child_name} was deleted by a user or a controller", attempt=attempt, at=now)


def evidence_of(pod: Pod, now: datetime = LATEST) -> Evidence | None:
    """None if the pod did not fail. Its times are its node's: nothing that it reports was before it, or is to come."""
    ended = pod.ended
    if pod.done or (pod.phase != "Failed" and ended is None):
        return None
    words = ended.words if ended else None
    spoken = words.failure_class if words else None
    told_at = (parse_time(words.time) if words else None) or (ended.at if ended else None) or pod.disrupted
    at = _within(pod, told_at, now)

    taken = pod.disruption or (pod.reason if pod.reason in GIVEN_BACK else "")
    if taken and (spoken is None or CLASSES[spoken].yields):
        why = "; ".join(part for part in (DISRUPTIONS.get(taken, ""), pod.message.strip()) if part)
        message = f"pod {pod.name} was taken off its node ({taken}): {why}".rstrip(": ")
        # Over its own limit it would be again at once, so that is not free.
        reason = Reason.DiskLimitExceeded if "exceeds the" in pod.message else Reason.Evicted
        at = _within(pod, pod.disrupted, now) if pod.disrupted else at
        return Evidence(failure=_of(pod, reason, message, at=at), at=at, echo=Echo.NONE)

    if ended is None and (pod.reason in TURNED_AWAY or pod.reason.startswith("OutOf")):
        message = f"the node of pod {pod.name} did not take it ({pod.reason}): {pod.message.strip()}"
        return Evidence(failure=_of(pod, Reason.NodeRefused, message, at=at), at=at, echo=Echo.NONE)

    if words and words.reason and spoken:
        failure = LastFailure(
            failure_class=spoken,
            reason=words.reason.value,
            message=clip(words.message),
            hint=clip(words.hint or hint_of(words.reason)),
            attempt=pod.attempt,
            rank=words.rank,
            node=pod.node or None,
            exit_code=words.exit_code or (ended.exit_code if ended else None),
            step=words.step,
            time=rfc3339(at) if at is not LATEST else None,
        )
        return Evidence(failure=failure, at=at, echo=CLASSES[spoken].echo)

    reason, message = _silent(pod, ended)
    return Evidence(failure=_of(pod, reason, message, at=at), at=at, echo=CLASSES[class_of(reason)].echo)


def _silent(pod: Pod, ended: Ended | None) -> tuple[Reason, str]:
    """Reason and message of a pod without a termination message."""
    if ended is None:
        return Reason.PodFailed, f"pod {pod.name} failed: {pod.reason or 'no reason given'} {pod.message}".strip()
    text = f": {ended.text.strip()}" if ended.text.strip() else ""
    if ended.reason == "OOMKilled":
        return Reason.OutOfMemory, f"pod {pod.name}: the kernel killed a process that went over the memory limit{text}"
    if ended.reason in ("StartError", "ContainerCannotRun"):
        lacking = any(sign in ended.text for sign in ("executable file not found", "no such file or directory"))
        what = f"the container of pod {pod.name} could not be started{text}"
        return (Reason.CommandMissing if lacking else Reason.PodFailed), what
    if (reason := default_reason(ended.exit_code)) is not None:
        return reason, f"pod {pod.name} ended with exit code {ended.exit_code}{text}"
    number = ended.signal or ended.exit_code - 128
    if number in {int(s) for s in signal.Signals}:
        return Reason.PodFailed, f"pod {pod.name} was killed by {signal.Signals(number).name}{text}"
    return Reason.PodFailed, f"pod {pod.name} ended with exit code {ended.exit_code} ({ended.reason}){text}"


def _within(pod: Pod, at: datetime | None, now: datetime) -> datetime:
    """A time by the clock of the pod's node, which may be wrong, within what can be."""
    return LATEST if at is None else min(max(at, pod.created or at), now)


def _of(pod: Pod, reason: Reason, message: str, *, at: datetime) -> LastFailure:
    failure = failure_of(reason, message, attempt=pod.attempt, at=at if at is not LATEST else None)
    exit_code = pod.ended.exit_code if pod.ended else None
    return failure.model_copy(update={"node": pod.node or None, "exit_code": exit_code})
