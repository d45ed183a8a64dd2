"""Who failed first, and why: from what the pods of one attempt left behind.

A pod testifies by, in this order: a disruption that Kubernetes announced, its last words, the kubelet's reason, its
exit code. In a gang most failures are echoes: a lost connection (PeerLost), or a stop asked for because another pod had
failed (Interrupted). An echo is believed only when no pod with a cause of its own has ended, or could still.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from finetune_api.failures import ExitCode, Reason, class_of, hint_of
from finetune_api.status import FailureClass, LastFailure

from .status import clip, failure_of, rfc3339
from .views import ChildJob, Ended, Pod, parse_time

PATIENCE = timedelta(seconds=5)
"""How long an echo waits for the culprit to speak."""

LATEST = datetime.max.replace(tzinfo=UTC)

DISRUPTIONS = {
    "PreemptionByScheduler": "a pod of higher priority took its place",
    "EvictionByEvictionAPI": "it was evicted, as when a node is drained",
    "DeletionByTaintManager": "its node got a taint that it does not tolerate",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node shut down, or ran short of memory or disk",
}
"""What the reasons of a DisruptionTarget condition mean."""

GIVEN_BACK = frozenset({"Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated", "NodeLost"})
"""Reasons in a pod's status by which a node takes its place back."""

BY_EXIT_CODE: dict[int, Reason] = {
    ExitCode.DATA: Reason.DataUnreadable,
    ExitCode.UNAVAILABLE: Reason.StorageUnavailable,
    ExitCode.INTERNAL: Reason.UnexpectedError,
    ExitCode.INTERRUPTED: Reason.Interrupted,
    ExitCode.AUTHENTICATION: Reason.CredentialsRejected,
    ExitCode.CONFIG: Reason.InvalidSpec,
    ExitCode.OUT_OF_MEMORY: Reason.OutOfMemory,
    ExitCode.NON_FINITE: Reason.LossNonFinite,
    ExitCode.HANG: Reason.NoProgress,
    ExitCode.PEER_LOST: Reason.PeerLost,
}


@dataclass(frozen=True, kw_only=True)
class Testimony:
    """What one pod says about the failure."""

    failure: LastFailure
    at: datetime
    echo: int
    """0: a cause of its own. 1: it was asked to stop. 2: it lost a peer."""


@dataclass(frozen=True)
class Verdict:
    failure: LastFailure
    wait: float
    """Seconds in which a better explanation may still come; 0: this is it."""


def blame(gang: Iterable[Pod], child: ChildJob | None, *, gone: Iterable[Pod] = (), now: datetime) -> Verdict | None:
    """The culprit of an attempt; None while nothing failed. `gone`: pods that failed and are no more."""
    pods = tuple(gang)
    told = sorted((t for pod in pods if (t := hear(pod))), key=lambda t: (t.echo, t.at))
    if (told and told[0].echo) or any(pod.unreachable and pod.deleting for pod in pods):
        told = [*_unreachable(pods), *told]
    if told:
        first = told[0]
        all_ended = child is None or child.finished or sum(not p.unfinished for p in pods) >= child.nodes
        if first.echo == 0 or all_ended:
            return Verdict(first.failure, 0.0)
        since = min((t.at for t in told if t.at is not LATEST), default=now)
        return Verdict(first.failure, max(0.0, (since + PATIENCE - now).total_seconds()))
    if child is not None and child.failing:
        if told := sorted((t for pod in gone if (t := hear(pod))), key=lambda t: (t.echo, t.at)):
            return Verdict(told[0].failure, 0.0)
        what = f"the Job {child.name} failed and no pod is left to tell why: {child.message}"
        return Verdict(failure_of(Reason.PodLost, what, attempt=child.attempt, at=now), 0.0)
    return None


def _unreachable(pods: Iterable[Pod]) -> list[Testimony]:
    """For pods whose node is silent: they cannot speak, and explain what the others tell."""
    found = []
    for pod in pods:
        if pod.unreachable and pod.unfinished:
            message = f"the node {pod.node} of pod {pod.name} does not report any more"
            found.append(Testimony(failure=_of(pod, Reason.NodeLost, message), at=pod.disrupted or LATEST, echo=0))
    return found


def lost(child_name: str, *, attempt: int, now: datetime) -> LastFailure:
    """The attempt's Job went away, and not by us."""
    return failure_of(Reason.PodLost, f"the Job {child_name} was deleted while it ran", attempt=attempt, at=now)


def hear(pod: Pod) -> Testimony | None:
    """None if the pod did not fail."""
    ended = pod.ended
    if pod.phase != "Failed" and not (ended and ended.exit_code):
        return None
    words = ended.words if ended else None
    spoken = words.failure_class if words else None
    at = (parse_time(words.time) if words else None) or (ended.at if ended else None) or pod.disrupted or LATEST

    taken = pod.disruption or (pod.reason if pod.reason in GIVEN_BACK else "")
    if taken and spoken in (None, FailureClass.Preemption, FailureClass.PeerLost, FailureClass.Internal):
        why = "; ".join(part for part in (DISRUPTIONS.get(taken, ""), pod.message.strip()) if part)
        message = f"pod {pod.name} was taken off its node ({taken}): {why}".rstrip(": ")
        # Over its own limit it would be again at once, so that is not free.
        reason = Reason.DiskLimitExceeded if "exceeds the" in pod.message else Reason.Evicted
        return Testimony(failure=_of(pod, reason, message), at=pod.disrupted or at, echo=0)

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
        return Testimony(failure=failure, at=at, echo=_echo(spoken))

    reason, message = _silent(pod, ended)
    return Testimony(failure=_of(pod, reason, message, at=at), at=at, echo=_echo(class_of(reason)))


def _echo(failure_class: FailureClass) -> int:
    return {FailureClass.Preemption: 1, FailureClass.PeerLost: 2}.get(failure_class, 0)


def _silent(pod: Pod, ended: Ended | None) -> tuple[Reason, str]:
    """Reason and message of a pod that left no last words."""
    if ended is None:
        return Reason.PodFailed, f"pod {pod.name} failed: {pod.reason or 'no reason given'} {pod.message}".strip()
    text = f": {ended.text.strip()}" if ended.text.strip() else ""
    if ended.reason == "OOMKilled":
        return Reason.OutOfMemory, f"pod {pod.name}: the kernel killed a process that went over the memory limit{text}"
    if ended.reason in ("StartError", "ContainerCannotRun"):
        lacking = any(sign in ended.text for sign in ("executable file not found", "no such file or directory"))
        what = f"the container of pod {pod.name} could not be started{text}"
        return (Reason.CommandMissing if lacking else Reason.PodFailed), what
    if ended.exit_code in BY_EXIT_CODE:
        return BY_EXIT_CODE[ended.exit_code], f"pod {pod.name} ended with exit code {ended.exit_code}{text}"
    number = ended.signal or ended.exit_code - 128
    if number in {int(s) for s in signal.Signals}:
        return Reason.PodFailed, f"pod {pod.name} was killed by {signal.Signals(number).name}{text}"
    return Reason.PodFailed, f"pod {pod.name} ended with exit code {ended.exit_code} ({ended.reason}){text}"


def _of(pod: Pod, reason: Reason, message: str, at: datetime = LATEST) -> LastFailure:
    at = at if at is not LATEST else (pod.ended.at if pod.ended else None) or pod.disrupted or LATEST
    failure = failure_of(reason, message, attempt=pod.attempt, at=at if at is not LATEST else None)
    exit_code = pod.ended.exit_code if pod.ended else None
    return failure.model_copy(update={"node": pod.node or None, "exit_code": exit_code})
