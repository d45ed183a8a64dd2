"""What should happen to one job now. PURE: the same observation at the same time gives the same decision.

The story of a job, as policies.STORY: the first policy that has something to say decides.

    deadline.expired             `ttlAfterFinished` is over: the FineTuneJob is deleted
    finish.already               it has ended: nothing is created, whatever happens to its children
    next_rung.reached            the next rung of its ladder needs other pods: the next attempt has them
    finish.succeeded             all pods of the attempt have succeeded: Succeeded, with the results of node 0
    failure.invalid              its spec cannot be read: Failed
    suspend.suspended            `suspend: true`: the pods checkpoint and end, their nodes are released
    deadline.overdue             `deadlines.active` is over: Failed
    queueing.held                a queue has not admitted its Job, or has preempted it: Queued
    elastic.admitted_in_part     the queue admitted fewer pods: the next attempt has as many
    failure.failed               a pod failed: another attempt, or Failed once the budget of its class is spent
    queueing.admitted            the queue has admitted its Job: Pending, and the deadlines begin
    elastic.short                too few nodes for too long: the next attempt has fewer pods
    deadline.not_started         `deadlines.startup` is over: the next attempt
    deadline.silent              node 0 and its node do not answer: it hangs, the next attempt
    newer_version.by_its_spec    a field that only a newer operator knows: no attempt is created
    admin.violated               it asks for what its admin's policy does not allow: no attempt is created
    start.started                its attempt has a number and no Job: Service and Job are created, once no pod of an
                                 earlier attempt runs
    group_object.ungrouped       its gang scheduler waits for a group object: it is created
    elastic.grown                nodes for more pods were found: the next attempt has more
    running.running              none of these: Pending, Starting or Running, with its progress

Before all of them, `newer_version.by_its_status` leaves a job alone whose status only a newer operator knows.

After them: an attempt is not ended by what is not seen, because watches lag, one after another, and miss objects that
lost their label. Where that is about to happen the API server is asked first for the attempt's Job and pods, and then
the decision is made again. A Job whose pods no one else ends is deleted whatever the story says: of an attempt that is
over, because a creation may arrive late (see leader), and of a job that has failed though none of its pods did. The
trainer's container decides how a pod ended; where its other containers run on, the Job is deleted a little later.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api.status import FineTuneJobStatus, Phase

from .decision import Decision
from .diagnosis.root_cause import evidence_of
from .policies import STORY, deadline, elastic, newer_version
from .state.observe import Observed
from .state.status import change, terminal
from .state.usage import metered
from .state.views import ChildJob, parse_time
from .transitions import ladder

LINGER = timedelta(seconds=30)
"""In which containers next to the trainer's should end when it has."""


def decide(seen: Observed, now: datetime) -> Decision:
    if seen.job.deleting or seen.job.foreign:
        return Decision(status=seen.status)  # what it owns goes with it, or is not ours
    if (alone := newer_version.by_its_status(seen, now)) is not None:
        return alone
    decision = next((d for policy in STORY if (d := policy(seen, now)) is not None), None)
    if decision is None:
        decision = Decision(status=seen.status)
    if _ends(seen, decision.status) and not (seen.confirmed or _all_seen(seen)):
        return Decision(status=seen.status, confirm=True)
    status = change(newer_version.released(seen, decision.status), observed_generation=seen.job.generation)
    useless = (c for c in seen.children if _outlives(c, seen, status, now) and c not in decision.delete)
    decision = decision.but(delete=(*decision.delete, *useless))
    decision = elastic.probed(seen, decision.but(status=status), now)
    lingers = _lingers_for(seen, status, now) or None
    events = (*decision.events, *ladder.told(seen.status, decision.status))
    decision = decision.but(status=metered(seen, decision.status, now), events=events)
    wakes = (decision.look_again_in, deadline.wake(seen, status, now), elastic.wake(seen, status, now), lingers)
    return decision.but(look_again_in=min((wait for wait in wakes if wait is not None), default=None))


def _ends(seen: Observed, status: FineTuneJobStatus) -> bool:
    """An attempt that is under way."""
    if not seen.attempt or terminal(seen.status) or seen.status.phase is Phase.Suspended:
        return False
    return (status.attempt or 0) != seen.attempt or terminal(status)


def _all_seen(seen: Observed) -> bool:
    """All pods of the attempt have ended, and the cache has what they said."""
    return seen.child is not None and len(seen.gang) >= seen.child.nodes and all(pod.over for pod in seen.gang)


def _outlives(child: ChildJob, seen: Observed, status: FineTuneJobStatus, now: datetime) -> bool:
    """Where a pod failed, the Job controller ends the others and the Job stays, with the logs."""
    if child.deleting or child.finished:
        return False
    if child.attempt < seen.attempt:
        return True
    broken = child.failing or any(evidence_of(pod) for pod in seen.pods if pod.attempt == child.attempt)
    if status.phase is Phase.Failed and not broken:
        return True
    return not child.failing and _lingers_for(seen, status, now) == 0


def _lingers_for(seen: Observed, status: FineTuneJobStatus, now: datetime) -> float | None:
    """Seconds until a pod of a job that has ended, whose trainer has, should have ended too; None: there is none."""
    ended_at = parse_time(status.completion_time)
    if not terminal(status) or ended_at is None or not any(pod.unfinished and pod.over for pod in seen.gang):
        return None
    left = (ended_at + LINGER - now).total_seconds()
    return left if 0 < left <= LINGER.total_seconds() else 0.0
