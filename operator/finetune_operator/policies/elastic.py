"""How many pods an attempt has, for a job with `nodes: {min, max}`. Within an attempt the number is fixed.

    at first, and resuming   max
    short of nodes           as many as have one, at least min: after the others had `deadlines.startup` to find one,
                             or a minute in an attempt that follows another
    after a failure          as many as before, and as many more as a capacity check has found nodes for
    place for more           so many more, after a checkpoint
    admitted in part         as many as its queue admitted: the plan of the attempt's pods says another number

Only the scheduler knows whether there is capacity, so it is asked: by a Job of idle pods like the missing ones,
which wait until they get a node. That takes no polling and no right to look at nodes. The probe is made when the
attempt has run for a while, twice as long after each time that the number went down and up, and goes when it has its
answer or is not needed any more. Changes of size are free (`restarts.resized`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from finetune_api import durations, names
from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, Phase, Restarts
from finetune_operator.decision import Create, Decision, Event
from finetune_operator.kube.resources import JOBS
from finetune_operator.objects import probe_job
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition, find
from finetune_operator.state.views import ChildJob, parse_time
from finetune_operator.transitions.blocked import PASSING
from finetune_operator.transitions.size import KEPT, places_found, size_after

SHORT = 60.0
"""Seconds that an attempt which follows another waits for more nodes than it has found."""

SETTLE = timedelta(seconds=10)
"""Places that are found within so long of each other are taken together."""


EVER = datetime.min.replace(tzinfo=UTC)

LONGEST = 3600.0
"""Seconds between two times that an attempt may grow, at most."""


def short(seen: Observed, now: datetime) -> Decision | None:
    """Fewer pods than the attempt has can be scheduled, and they have waited long enough for the others."""
    child, at = seen.child, _short_at(seen, seen.status)
    if child is None or at is None or at > now:
        return None
    placed = _placed(seen)
    words = next((pod.unschedulable for pod in seen.gang if pod.unschedulable), "") or seen.pods_refused
    message = (
        f"Attempt {seen.attempt} found nodes for {placed} of {child.nodes} pods; attempt {seen.attempt + 1} restarts "
        f"with {placed}{f' (the scheduler: {words})' if words else ''}"
    )
    return _resize(seen, placed, Reason.ScaledDown, message, now)


def admitted_in_part(seen: Observed, now: datetime) -> Decision | None:
    """The queue let the Job go with fewer pods than it asked for, and their plan says another number."""
    child, nodes = seen.child, seen.status.nodes
    if child is None or not child.queue or nodes is None or child.nodes == nodes:
        return None
    if child.suspended or child.deleting or child.failing or child.finished:
        return None
    message = (
        f"The queue {child.queue} has capacity for {child.nodes} of {nodes} pods; attempt {seen.attempt + 1} "
        "requests as many"
    )
    return _resize(seen, child.nodes, Reason.ScaledDown, message, now)


def grown(seen: Observed, now: datetime) -> Decision | None:
    """Nodes for more pods have been found."""
    child, spec = seen.child, seen.spec
    if spec is None or child is None or seen.status.phase is not Phase.Running or seen.violations:
        return None
    places = places_found(seen, now)
    if not places:
        return None
    nodes = size_after(seen, spec, now)
    if nodes <= child.nodes:
        return None
    wait = (max(places) + SETTLE - now).total_seconds()
    if nodes < spec.max_nodes and wait > 0:
        return None
    message = (
        f"Capacity for {nodes - child.nodes} more pods found; attempt {seen.attempt + 1} restarts with {nodes} "
        "from the last checkpoint"
    )
    return _resize(seen, nodes, Reason.ScaledUp, message, now)


def probed(seen: Observed, decision: Decision, now: datetime) -> Decision:
    """The decision with a probe made when it is time, and taken away when it is of no use."""
    alive = tuple(probe for probe in seen.probes if not probe.deleting)
    useless = tuple(probe for probe in alive if not _useful(probe, seen, decision, now))
    decision = decision.but(delete=(*decision.delete, *useless))
    at = _probe_at(seen, decision.status)
    if seen.probes or seen.spec is None or at is None or at > now:
        return decision
    missing = _missing(seen, decision.status)
    body = probe_job(
        seen.job,
        seen.spec,
        attempt=seen.attempt,
        pods=missing,
        defaults=seen.defaults,
        seconds=int(KEPT.total_seconds()),
    )
    again = seen.defaults.grow_after  # if it is refused
    soon = again if decision.look_again_in is None else min(again, decision.look_again_in)
    return decision.but(probe=Create(JOBS, body), look_again_in=soon)


def wake(seen: Observed, status: FineTuneJobStatus, now: datetime) -> float | None:
    """Seconds until the number of pods may have to change, for a job whose status is about to be this."""
    places = places_found(seen, now)
    settled = max(places) + SETTLE if places else None
    ends = min((_stale_at(probe, seen) for probe in seen.probes if _over(probe)), default=None)
    times = (_short_at(seen, status), None if seen.probes else _probe_at(seen, status), settled, ends)
    return min(((at - now).total_seconds() for at in times if at is not None and at > now), default=None)


def _resize(seen: Observed, nodes: int, reason: Reason, message: str, now: datetime) -> Decision:
    status, restarts = seen.status, seen.status.restarts or Restarts()
    told = status.last_failure
    passing = told is not None and told.attempt == seen.attempt and told.reason in PASSING
    status = change(
        status,
        phase=Phase.Restarting,
        attempt=seen.attempt + 1,
        restarts=restarts.model_copy(update={"resized": (restarts.resized or 0) + 1}),
        nodes=nodes,
        last_failure=None if passing else told,
    )
    stamp = Stamp(seen.job.generation, now)
    status = condition(status, "Running", true=False, reason=reason, message=message, stamp=stamp)
    leftovers = tuple(child for child in seen.children if not child.deleting)
    event = Event(reason, message, "Warning" if reason is Reason.ScaledDown else "Normal")
    return Decision(status=status, delete=leftovers, events=(event,), look_again_in=0.0)


# fewer


def _placed(seen: Observed) -> int:
    return sum(bool(pod.node) or pod.scheduled is not None for pod in seen.gang)


def _short_at(seen: Observed, status: FineTuneJobStatus) -> datetime | None:
    """When the pods that have a node continue without the others; None while that is unknown."""
    spec, child = seen.spec, seen.child
    starting = status.phase in (Phase.Pending, Phase.Starting, Phase.Restarting)
    if spec is None or not starting or child is None or child.deleting or child.attempt != status.attempt:
        return None
    if not spec.min_nodes <= _placed(seen) < child.nodes or child.wanted_since is None:
        return None
    patience = float(durations.seconds(spec.deadlines.startup))
    lacking = [pod for pod in seen.gang if pod.scheduled is None and not pod.node]
    if child.attempt > 1 and all(pod.unschedulable for pod in lacking):
        patience = min(patience, SHORT)
    return child.wanted_since + timedelta(seconds=patience)


# more


def _missing(seen: Observed, status: FineTuneJobStatus) -> int:
    """Pods that the running attempt has too few."""
    child, spec = seen.child, seen.spec
    running = status.phase is Phase.Running and status.attempt == seen.attempt
    if spec is None or child is None or child.deleting or not running:
        return 0
    return max(0, spec.max_nodes - child.nodes)


def _probe_at(seen: Observed, status: FineTuneJobStatus) -> datetime | None:
    """When the running attempt may look for more nodes; None if it needs none, or ends too soon."""
    runs = find(status, "Running")
    if not _missing(seen, status) or runs is None or runs.status != "True":
        return None
    if seen.spec is None or seen.spec.queue_name or seen.violations:
        return None  # its queue decides who gets what is free; the admin's policy holds the attempt that would follow
    progress = seen.report.progress if seen.report else status.progress
    pause = seen.defaults.grow_after
    if progress is not None and progress.eta_seconds is not None and progress.eta_seconds < pause:
        return None
    times = (status.restarts.resized or 0) if status.restarts else 0
    since = max((at for at in (parse_time(runs.last_transition_time), seen.probe_refused) if at), default=None)
    pause = min(pause * 2.0 ** min(max(times - 1, 0) // 2, 16), max(LONGEST, pause))
    return since + timedelta(seconds=pause) if since else None


def _over(probe: ChildJob) -> bool:
    return probe.finished or probe.failing


def _stale_at(probe: ChildJob, seen: Observed) -> datetime:
    """When a probe that has ended without success is worth another try."""
    return (probe.created or EVER) + timedelta(seconds=max(seen.defaults.grow_after, KEPT.total_seconds()))


def _useful(probe: ChildJob, seen: Observed, decision: Decision, now: datetime) -> bool:
    """It waits for the running attempt, or keeps its places until the next one's Job is made."""
    status = decision.status
    if probe.probe == names.probe_of(seen.job.uid, status.attempt or 0):
        return _missing(seen, status) > 0 and (not _over(probe) or now < _stale_at(probe, seen))
    keeps = probe.probe == names.probe_of(seen.job.uid, (status.attempt or 0) - 1) and status.phase is Phase.Restarting
    return keeps and not decision.create and all(child.attempt != status.attempt for child in seen.children)
