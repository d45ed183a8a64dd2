"""Deadlines, each by a wake-up at its time and none by polling.

    startup    from the Job's creation, or from its admission by a queue, until all its pods run: the nodes are
               released, the next attempt is counted; a ladder whose rung has no attempt left publishes its best
    active     from `startTime` (the start, or the last resuming): the job has failed
    silence    node 0's agent answered before and does not for `stall` and a margin, others answer, and Kubernetes says
               that its node is silent, or that its agent stopped answering the readiness probe: it hangs
    ttl        from `completionTime`: the FineTuneJob itself is deleted

A stall that an agent can see is reported by the agent (agent.watch); silence is the backstop for a node that froze. It
is counted in requests (see agent_contact), and as long as the pod's kubelet reports, that counts for more.
Suspending and queueing end all of them; resuming starts them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta

from finetune_api import durations
from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, LastFailure, Phase
from finetune_operator.decision import Decision
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import clip, failure_of, terminal
from finetune_operator.state.views import parse_time
from finetune_operator.transitions.blocked import PASSING
from finetune_operator.transitions.ladder import give_up
from finetune_operator.transitions.restart import end, restart_or_end

MARGIN = timedelta(minutes=5)
"""Beyond `deadlines.stall`, in which an agent would have reported a hang by itself."""

LATER = 300.0
"""Seconds until a deadline that is over and that nothing came of is looked at again."""


def overdue(seen: Observed, now: datetime) -> Decision | None:
    """`deadlines.active` is over."""
    spec = seen.spec
    at = _active_until(spec, seen.status) if spec else None
    if spec is None or at is None or at > now:
        return None
    message = f"the job did not end within {spec.deadlines.active} (deadlines.active)"
    failure = _failure(seen, Reason.DeadlineExceeded, message, now)
    alive = tuple(child for child in seen.children if not child.deleting and not child.finished)
    return end(seen, failure, reason=Reason.DeadlineExceeded, message=message, now=now).but(delete=alive)


def not_started(seen: Observed, now: datetime) -> Decision | None:
    """`deadlines.startup` is over, and not all pods run."""
    at = _startup_until(seen, seen.status)
    if seen.spec is None or at is None or at > now:
        return None
    message = f"not all pods ran within {seen.spec.deadlines.startup} (deadlines.startup)"
    failure = _failure(seen, Reason.StartupDeadline, message, now)
    told = seen.status.last_failure
    if told is not None and told.attempt == seen.attempt and told.reason in PASSING:
        said = {"message": clip(f"{message}: {told.reason}: {told.message}"), "hint": told.hint, "node": told.node}
        failure = failure.model_copy(update=said)
    after = restart_or_end(seen, seen.spec, failure, now)
    return (give_up(seen, failure, now) if terminal(after.status) else None) or after


def silent(seen: Observed, now: datetime) -> Decision | None:
    """Node 0 has not answered for so long that it cannot be at work, and there is a second witness: Kubernetes reports
    that its node is silent, or that its agent does not answer the kubelet either."""
    if seen.spec is None or seen.heard is None or seen.status.phase is not Phase.Running:
        return None
    first = next((pod for pod in seen.gang if pod.index == 0), None)
    patience = durations.seconds(seen.spec.deadlines.stall) + MARGIN.total_seconds()
    if seen.silence < patience or first is None or first.ready or not (first.unreachable or first.mute):
        return None
    witness = (
        "neither does the node of its pod" if first.unreachable else "its agent does not answer the kubelet either"
    )
    message = f"node 0 has not answered for {seen.silence / 60:.0f} minutes, and {witness}"
    failure = _failure(seen, Reason.NoProgress, message, now)
    return restart_or_end(seen, seen.spec, failure.model_copy(update={"node": first.node or None}), now)


def expired(seen: Observed, now: datetime) -> Decision | None:
    """`ttlAfterFinished` is over."""
    at = _kept_until(seen, seen.status)
    if at is None or at > now:
        return None
    return Decision(status=seen.status, expired=True)


def wake(seen: Observed, status: FineTuneJobStatus, now: datetime) -> float | None:
    """Seconds to the next deadline, for a job whose status is about to be this."""
    times = [at for at in _deadlines(seen, status) if at is not None]
    if not times:
        return None
    return max(0.0, (min(times) - now).total_seconds()) or LATER


def _deadlines(seen: Observed, status: FineTuneJobStatus) -> Iterator[datetime | None]:
    yield _kept_until(seen, status)
    if seen.spec is not None:
        yield _active_until(seen.spec, status)
    yield _startup_until(seen, status)


def _active_until(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> datetime | None:
    if spec.deadlines.active is None or terminal(status) or status.phase is Phase.Suspended:
        return None
    return _after(parse_time(status.start_time), spec.deadlines.active)


def _startup_until(seen: Observed, status: FineTuneJobStatus) -> datetime | None:
    child = seen.child
    starting = status.phase in (Phase.Pending, Phase.Starting, Phase.Restarting)
    if seen.spec is None or not starting or child is None or child.deleting or child.attempt != status.attempt:
        return None
    if sum(pod.phase in ("Running", "Succeeded") for pod in seen.gang) >= child.nodes:
        return None
    since = (child.wanted_since, parse_time(status.start_time))  # the later: it may have been held and let go since
    return _after(max((at for at in since if at), default=None), seen.spec.deadlines.startup)


def _kept_until(seen: Observed, status: FineTuneJobStatus) -> datetime | None:
    ttl = seen.spec.ttl_after_finished if seen.spec is not None else seen.job.ttl_after_finished
    if ttl is None or not terminal(status):
        return None
    with suppress(ValueError, OverflowError):  # of a version that took any number
        return _after(parse_time(status.completion_time), ttl)
    return None


def _after(since: datetime | None, duration: str) -> datetime | None:
    return since + timedelta(seconds=durations.seconds(duration)) if since else None


def _failure(seen: Observed, reason: Reason, message: str, now: datetime) -> LastFailure:
    return failure_of(reason, message, attempt=seen.attempt, at=now)
