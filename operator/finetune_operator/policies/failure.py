"""What a failure means: another attempt, or the end.

The failure's class decides, each with its own budget (finetune_api.budget). The whole gang restarts, by raising
`status.attempt` first and deleting the old Job then; the new Job is made when no pod of the old one runs any more (see
start).
"""

from __future__ import annotations

from datetime import datetime

from finetune_api import names
from finetune_api.budget import Enough, next_attempt
from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, LastFailure, Phase, ResolvedPlan, Restarts
from finetune_operator.avoidance import after
from finetune_operator.decision import Decision, Event
from finetune_operator.evidence import blame, lost
from finetune_operator.observe import Observed
from finetune_operator.status import Stamp, change, condition, failure_of, rfc3339, settled

from .elastic import size_after
from .grouping import described
from .queueing import excused


def invalid(seen: Observed, now: datetime) -> Decision | None:
    """A spec that slipped through the schema, or that only a newer operator understands."""
    if seen.spec is not None:
        return None
    return refuse(seen, seen.problem, now)


def refuse(seen: Observed, problem: str, now: datetime) -> Decision:
    """The job can never run as it is written. `problem` may also be the API server's word on the objects made of it."""
    failure = failure_of(Reason.InvalidSpec, problem, attempt=seen.attempt, at=now)
    alive = tuple(child for child in seen.children if not child.deleting and not child.finished)
    return end(seen, failure, reason=Reason.InvalidSpec, message=problem, now=now).but(delete=alive)


def failed(seen: Observed, now: datetime) -> Decision | None:
    spec, child, phase = seen.spec, seen.child, seen.status.phase
    if spec is None or phase is Phase.Suspended:
        return None  # what ends while the job is suspended ends because of that
    was_up = phase in (Phase.Starting, Phase.Running)
    if child is None and not was_up:
        return None  # not made yet
    verdict = blame(seen.gang, child, gone=seen.gone, now=now)
    if verdict is None and (child is None or child.deleting):
        return judge(
            seen, spec, lost(names.attempt_name(seen.job.name, seen.attempt), attempt=seen.attempt, now=now), now
        )
    if verdict is None:
        return None
    if verdict.wait:
        return Decision(status=seen.status, look_again_in=verdict.wait)
    return judge(seen, spec, excused(seen, spec, verdict.failure), now)


def judge(seen: Observed, spec: FineTuneJobSpec, failure: LastFailure, now: datetime) -> Decision:
    status = seen.status
    verdict = next_attempt(
        failure.failure_class,
        status.restarts or Restarts(),
        max_restarts=spec.retry.max_restarts,
        plan=_plan(seen),
        micro_batch_tokens=status.micro_batch_tokens,
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
        micro_batch_tokens=verdict.micro_batch_tokens,
        skipped_step=failure.step if verdict.skips and spec.training.skip_bad_batch else status.skipped_step,
        nodes=size_after(seen, spec, now),
        last_failure=failure,
        avoided_nodes=after(
            status.avoided_nodes or (), failure, elsewhere=len({p.node for p in seen.gang if p.node}) > 1, now=now
        ),
    )
    status = described(seen, spec, status, now)
    return _restart(seen, status, message=f"{what}; attempt {status.attempt} follows {verdict.change}".strip(), now=now)


def _plan(seen: Observed) -> ResolvedPlan | None:
    """What the failed attempt had come to: from its pods' last words, else as it was last reported."""
    words = [pod.ended.words for pod in seen.gang if pod.ended and pod.ended.words]
    told = next((each.plan for each in words if each.plan), None)
    return told or (seen.report.plan if seen.report else None) or seen.status.plan


def _restart(seen: Observed, status: FineTuneJobStatus, *, message: str, now: datetime) -> Decision:
    stamp = Stamp(seen.job.generation, now)
    status = condition(status, "Running", true=False, reason=Reason.Restarting, message=message, stamp=stamp)
    leftovers = tuple(child for child in seen.children if not child.deleting)
    event = Event(Reason.Restarting, message, "Warning")
    return Decision(status=status, delete=leftovers, events=(event,), look_again_in=0.0)


def end(seen: Observed, failure: LastFailure, *, reason: Reason, message: str, now: datetime) -> Decision:
    """Where a pod failed the Job stays, with its logs; its controller ends the pods that still run. Else see decide."""
    status = change(seen.status, phase=Phase.Failed, completion_time=rfc3339(now), last_failure=failure)
    message = f"{message} ({failure.hint})" if failure.hint else message
    stamp = Stamp(seen.job.generation, now)
    status = settled(status, stamp)
    if seen.attempt:
        status = condition(status, "Running", true=False, reason=reason, message=message, stamp=stamp)
    status = condition(status, "Failed", true=True, reason=reason, message=message, stamp=stamp)
    return Decision(status=status, events=(Event(reason, message, "Warning"),))
