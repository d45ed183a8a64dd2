"""What follows a failed attempt: another attempt, or the end of the job.

A restart raises `status.attempt` first and deletes the old Job then; the new Job is created when no pod of the old one
runs any more (see policies.start).
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.budget import Enough, next_attempt, recent
from finetune_api.failures import FailureClass, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, LastFailure, Phase, ResolvedPlan, Restarts
from finetune_operator.decision import Decision, Event
from finetune_operator.diagnosis.node_avoidance import after
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition, failure_of, rfc3339, settled

from .gang import describe_gang
from .results import climbed, held_back
from .size import size_after


def restart_or_end(seen: Observed, spec: FineTuneJobSpec, failure: LastFailure, now: datetime) -> Decision:
    status, before = seen.status, seen.status.restarts or Restarts()
    times = recent(status.restart_times, before.counted, window=spec.retry.window, now=now)
    verdict = next_attempt(
        failure.failure_class,
        before,
        max_restarts=spec.retry.max_restarts,
        plan=_plan(seen),
        micro_batch_tokens=status.micro_batch_tokens,
        spent=len(times),
        window=spec.retry.window,
    )
    what = f"Attempt {seen.attempt} failed: {failure.reason}: {failure.message}"
    if isinstance(verdict, Enough):
        message = f"{what}; {verdict.why}" if verdict.why else what
        return end(seen, failure, reason=verdict.reason or Reason(failure.reason), message=message, now=now)
    status = change(
        status,
        phase=Phase.Restarting,
        attempt=seen.attempt + 1,
        restarts=verdict.restarts,
        restart_times=(*times, rfc3339(now)) if verdict.restarts.counted > before.counted else status.restart_times,
        micro_batch_tokens=verdict.micro_batch_tokens,
        skipped_step=failure.step if verdict.skips and spec.training.skip_bad_batch else status.skipped_step,
        nodes=size_after(seen, spec, now),
        last_failure=failure,
        avoided_nodes=after(
            status.avoided_nodes or (), failure, elsewhere=len({p.node for p in seen.gang if p.node}) > 1, now=now
        ),
    )
    status = describe_gang(seen, spec, status, now)
    return _restart(seen, status, message=f"{what}; attempt {status.attempt} follows {verdict.change}".strip(), now=now)


def end(seen: Observed, failure: LastFailure, *, reason: Reason, message: str, now: datetime) -> Decision:
    """Where a pod failed the Job stays, with its logs; its controller ends the pods that still run. Else see decide."""
    status = change(
        seen.status, phase=Phase.Failed, completion_time=rfc3339(now), last_failure=failure, ladder=climbed(seen)
    )
    message = f"{message} ({failure.hint})" if failure.hint else message
    stamp = Stamp(seen.job.generation, now)
    status = settled(status, stamp)
    if failure.failure_class is FailureClass.Guard:
        status = held_back(seen, status, stamp)
    if seen.attempt:
        status = condition(status, "Running", true=False, reason=reason, message=message, stamp=stamp)
    status = condition(status, "Failed", true=True, reason=reason, message=message, stamp=stamp)
    return Decision(status=status, events=(Event(reason, message, "Warning"),))


def end_as_invalid(seen: Observed, problem: str, now: datetime) -> Decision:
    """The job can never run as it is written. `problem` may also be the API server's word on the objects made of it."""
    failure = failure_of(Reason.InvalidSpec, problem, attempt=seen.attempt, at=now)
    alive = tuple(child for child in seen.children if not child.deleting and not child.finished)
    return end(seen, failure, reason=Reason.InvalidSpec, message=problem, now=now).but(delete=alive)


def take_next_number(seen: Observed, problem: str, now: datetime) -> Decision:
    """The status with the next number: another Job has the name of the present one. Nothing failed."""
    number = seen.attempt + 1
    message = f"{problem[:1].upper()}{problem[1:]}: attempt {number} replaces attempt {seen.attempt}"
    status, stamp = change(seen.status, attempt=number), Stamp(seen.job.generation, now)
    status = condition(status, "Running", true=False, reason=Reason.NameTaken, message=message, stamp=stamp)
    return Decision(status=status, events=(Event(Reason.NameTaken, message, "Warning"),), look_again_in=0.0)


def _restart(seen: Observed, status: FineTuneJobStatus, *, message: str, now: datetime) -> Decision:
    stamp = Stamp(seen.job.generation, now)
    status = condition(status, "Running", true=False, reason=Reason.Restarting, message=message, stamp=stamp)
    leftovers = tuple(child for child in seen.children if not child.deleting)
    event = Event(Reason.Restarting, message, "Warning")
    return Decision(status=status, delete=leftovers, events=(event,), look_again_in=0.0)


def _plan(seen: Observed) -> ResolvedPlan | None:
    """The failed attempt's plan: from its pods' termination messages, else as it was last reported."""
    words = [pod.ended.words for pod in (*seen.gang, *seen.gone) if pod.ended and pod.ended.words]
    told = next((each.plan for each in words if each.plan), None)
    return told or (seen.report.plan if seen.report else None) or seen.status.plan
