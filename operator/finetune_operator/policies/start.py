"""The Job of the present attempt, made when it may be: after its number is in the status, and when no pod of an earlier
attempt runs any more.

An old Job is over when it is gone, when the Job controller calls it finished, or when it is being deleted (no pod is
started for it any more) and none of its pods is waited for (see unreachable_pods).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api import names
from finetune_api.advice import advice
from finetune_api.budget import pause_seconds
from finetune_api.failures import CLASSES, HELD, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, LastFailure, Phase, Restarts
from finetune_operator.decision import Create, Decision, Event
from finetune_operator.diagnosis.node_avoidance import affinity
from finetune_operator.diagnosis.unreachable_pods import awaited
from finetune_operator.kube.resources import JOBS, NETWORK_POLICIES, SERVICES
from finetune_operator.network_policy import network_policy
from finetune_operator.objects import attempt_job, service
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition, find, rfc3339
from finetune_operator.state.views import parse_time
from finetune_operator.transitions.gang import chosen_gang, describe_gang
from finetune_operator.transitions.queue import queued, waits_in
from finetune_operator.transitions.size import size

STILL_ENDING = 10.0
"""Events show when the old pods have ended; this is for an event that was lost."""

SKEW = timedelta(seconds=5)
"""By which clocks differ that are right."""

OVERDUE = timedelta(seconds=60)
"""Beyond the time by which a pod should have ended: its kubelet would have killed it by then."""

ORPHANED = timedelta(seconds=30)
"""In which the garbage collector deletes pods whose Job is gone, unless they were to stay (`--cascade=orphan`)."""


def started(seen: Observed, now: datetime) -> Decision | None:
    spec = seen.spec
    resuming = seen.status.phase is Phase.Suspended
    if spec is None or (seen.child is not None and not resuming and seen.status.attempt is not None):
        return None
    status, events = _numbered(seen, spec, resuming=resuming, now=now)
    status, gang = _warned(seen, spec, describe_gang(seen, spec, status, now), now), chosen_gang(seen, spec)
    number = status.attempt or 1
    if seen.child is not None and seen.child.attempt == number:
        return Decision(status=status, look_again_in=0.0)  # its status was lost; the Job was not
    leftovers = tuple(child for child in seen.children if not child.deleting and child.attempt != number)
    decision = Decision(status=status, delete=leftovers, events=events)
    if not _over(seen, now):
        return decision.but(status=_held_up(seen, spec, status, now), look_again_in=STILL_ENDING)
    if (pause := _pause(status, now)) > 0:
        return decision.but(look_again_in=pause)
    away = affinity(spec.pod.affinity, status.avoided_nodes or (), now)
    job = attempt_job(
        seen.job,
        spec.model_copy(update={"pod": spec.pod.model_copy(update={"affinity": away})}),
        attempt=number,
        nodes=size(spec, status),
        defaults=seen.defaults,
        micro_batch_tokens=status.micro_batch_tokens,
        skipped_step=status.skipped_step,
        gang=gang,
        rung=seen.rung,
        whole=seen.whole,
        unavailable=status.unavailable_rung,
    )
    decision = decision.but(events=(*events, *_given_up(seen, now)))
    children = (Create(SERVICES, service(seen.job)), *_protected(seen), Create(JOBS, job))
    return decision.but(create=children, alone=number > 1, look_again_in=0.0 if gang or spec.queue_name else None)


def _protected(seen: Observed) -> tuple[Create, ...]:
    """Made before the pods, so that none of them ever listens without it."""
    peers = seen.defaults.peers
    return () if peers is None else (Create(NETWORK_POLICIES, network_policy(seen.job, peers)),)


def _numbered(
    seen: Observed, spec: FineTuneJobSpec, *, resuming: bool, now: datetime
) -> tuple[FineTuneJobStatus, tuple[Event, ...]]:
    """The status with the attempt's number in it, as it must stand before the Job exists."""
    status = seen.status
    if status.attempt is not None and not resuming:
        return status, ()
    again = resuming and seen.attempt > 0
    number = seen.attempt + 1 if again else max(seen.attempt, 1)
    restarts = status.restarts or Restarts()
    nodes = seen.child.nodes if seen.child is not None and not again else spec.max_nodes
    if status.last_failure is not None and status.last_failure.reason in HELD:
        status = change(status, last_failure=None)  # told of the attempt before: nothing else would take it back
    status = change(
        status,
        phase=Phase.Pending,
        attempt=number,
        restarts=restarts.model_copy(update={"free": restarts.free + 1}) if again else restarts,
        nodes=nodes,
        start_time=rfc3339(now),
        unavailable_rung=None,  # whoever resumes a job may have made room for it
    )
    stamp = Stamp(seen.job.generation, now)
    pods = "1 pod" if nodes == 1 else f"{nodes} pods"
    message = f"Attempt {number} with {pods} starts"
    if spec.queue_name:
        waits = waits_in(spec.queue_name, names.attempt_name(seen.job.name, number))
        status = queued(seen, status, why=waits, now=now)
    else:
        status = condition(status, "Running", true=False, reason=Reason.GangCreated, message=message, stamp=stamp)
    if find(status, "Suspended") is None:
        return status, ()
    status = condition(status, "Suspended", true=False, reason=Reason.Resumed, message=message, stamp=stamp)
    return status, (Event(Reason.Resumed, message),)


def _warned(seen: Observed, spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """Says what is probably not meant, before it has cost anything."""
    found = advice(spec)
    if not found:
        return status
    stamp = Stamp(seen.job.generation, now)
    message = "; ".join(found)
    return condition(status, "Warned", true=True, reason=Reason.LauncherInCommand, message=message, stamp=stamp)


def _over(seen: Observed, now: datetime) -> bool:
    jobs_over = all(child.finished or child.deleting for child in seen.children)
    return jobs_over and not awaited(seen.pods, seen.children, seen.spec, now)


def _given_up(seen: Observed, now: datetime) -> tuple[Event, ...]:
    """What is said of pods that the next attempt does not wait for."""
    waits = awaited(seen.pods, seen.children, seen.spec, now)
    left = [f"{pod.name} on node {pod.node}" for pod in seen.pods if pod.unfinished and pod not in waits]
    if not left:
        return ()
    message = (
        f"The next attempt does not wait for pods whose nodes do not report and whose gang has ended: {', '.join(left)}"
    )
    return (Event(Reason.NodeLost, message, "Warning"),)


def _held_up(seen: Observed, spec: FineTuneJobSpec, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """Says which pods of an earlier attempt do not end, long after they should have, or because no controller ends
    them, and what people can do."""
    waits = awaited(seen.pods, seen.children, spec, now)
    late = [pod for pod in waits if pod.ends is not None and now >= pod.ends + OVERDUE]
    jobs = {child.uid for child in seen.children}
    orphans = [pod for pod in waits if pod.ends is None and pod.controller not in jobs]
    failed_at = parse_time(status.last_failure.time) if status.last_failure else None
    if orphans and failed_at is not None and now < failed_at + ORPHANED:
        orphans = []  # the garbage collector may be about to delete them
    if not late and not orphans:
        return status
    pods = ", ".join(f"{pod.name} on node {pod.node or '?'}" for pod in late or orphans)
    what = (
        f"do not end: {pods} (if a node will not come back, delete it, or add the taint "
        "node.kubernetes.io/out-of-service)"
        if late
        else f"have no Job any more and still run: {pods} (wait until they end, or delete them)"
    )
    message = f"Attempt {status.attempt} waits for pods that {what}"
    stamp = Stamp(seen.job.generation, now)
    return condition(status, "Running", true=False, reason=Reason.Restarting, message=message, stamp=stamp)


def _pause(status: FineTuneJobStatus, now: datetime) -> float:
    """Seconds to wait until the next attempt may be made."""
    failure = status.last_failure
    failed_at = parse_time(failure.time) if failure else None
    if status.phase is not Phase.Restarting or failure is None or failed_at is None:
        return 0.0
    if failure.attempt != (status.attempt or 0) - 1:
        return 0.0  # the last attempt did not fail: another number of nodes was to be had
    if failed_at > now + SKEW:
        return 0.0  # by a clock that was wrong: it says nothing about how long ago that was
    restarts = status.restarts or Restarts()
    counted = CLASSES[failure.failure_class].counted or _was_counted(status, failure, restarts, failed_at)
    if counted and status.restart_times is not None:
        restarts = restarts.model_copy(update={"counted": len(status.restart_times)})  # the others are forgotten
    pause = pause_seconds(restarts, counted=counted)
    return (failed_at + timedelta(seconds=pause) - now).total_seconds()


def _was_counted(status: FineTuneJobStatus, failure: LastFailure, restarts: Restarts, failed_at: datetime) -> bool:
    """Memory that ran out is paid with smaller micro-batches, or counted where these were not known."""
    budget = CLASSES[failure.failure_class].budget
    if not (budget and budget.halves and restarts.counted):
        return False
    counted_at = parse_time(status.restart_times[-1]) if status.restart_times else None
    return not restarts.paid_by(budget) or (counted_at is not None and counted_at >= failed_at)
