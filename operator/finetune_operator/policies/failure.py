"""What a failure means: another attempt, or the end.

The failure's class decides (finetune_api.failures.CLASSES): some can never be helped by another try, preemption costs
nothing, the rest counts against retry.maxRestarts. The whole gang restarts, by raising `status.attempt` first and
deleting the old Job then; the new Job is made when no pod of the old one runs any more (see start).
"""

from __future__ import annotations

from datetime import datetime

from finetune_api import names
from finetune_api.failures import CLASSES, Reason, class_of, hint_of
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import LastFailure, Phase, Restarts
from finetune_operator.decision import Decision, Event
from finetune_operator.evidence import blame, lost
from finetune_operator.observe import Observed
from finetune_operator.status import Stamp, change, clip, condition, rfc3339


def invalid(seen: Observed, now: datetime) -> Decision | None:
    """A spec that slipped through the schema, or that only a newer operator understands."""
    if seen.spec is not None:
        return None
    return refuse(seen, seen.problem, now)


def refuse(seen: Observed, problem: str, now: datetime) -> Decision:
    """The job can never run as it is written. `problem` may also be the API server's word on the objects made of it."""
    failure = LastFailure(
        failure_class=class_of(Reason.InvalidSpec),
        reason=Reason.InvalidSpec.value,
        message=clip(problem),
        hint=hint_of(Reason.InvalidSpec),
        attempt=seen.attempt,
        time=rfc3339(now),
    )
    alive = tuple(child for child in seen.children if not child.deleting and not child.finished)
    return _end(seen, failure, reason=Reason.InvalidSpec, message=problem, now=now).but(delete=alive)


def failed(seen: Observed, now: datetime) -> Decision | None:
    spec, child, phase = seen.spec, seen.child, seen.status.phase
    if spec is None or phase is Phase.Suspended:
        return None  # what ends while the job is suspended ends because of that
    was_up = phase in (Phase.Starting, Phase.Running)
    if child is None and not was_up:
        return None  # not made yet
    verdict = blame(seen.gang, child, now=now)
    if verdict is None and (child is None or child.deleting):
        return _judge(
            seen, spec, lost(names.attempt_name(seen.job.name, seen.attempt), attempt=seen.attempt, now=now), now
        )
    if verdict is None:
        return None
    if verdict.wait:
        return Decision(status=seen.status, look_again_in=verdict.wait)
    return _judge(seen, spec, verdict.failure, now)


def _judge(seen: Observed, spec: FineTuneJobSpec, failure: LastFailure, now: datetime) -> Decision:
    rule = CLASSES[failure.failure_class]
    restarts, limit = seen.status.restarts or Restarts(), spec.retry.max_restarts
    what = f"Attempt {seen.attempt} failed: {failure.reason}: {failure.message}"
    if not rule.retried:
        return _end(seen, failure, reason=Reason(failure.reason), message=what, now=now)
    if rule.counted and restarts.counted >= limit:
        message = f"{what}; all {limit} restarts are used up (retry.maxRestarts)"
        return _end(seen, failure, reason=Reason.RestartsExhausted, message=message, now=now)
    counted = _one_more(restarts, counted=rule.counted)
    return _restart(seen, failure, restarts=counted, nodes=spec.nodes, what=what, now=now)


def _one_more(restarts: Restarts, *, counted: bool) -> Restarts:
    if counted:
        return restarts.model_copy(update={"counted": restarts.counted + 1})
    return restarts.model_copy(update={"free": restarts.free + 1})


def _restart(
    seen: Observed, failure: LastFailure, *, restarts: Restarts, nodes: int, what: str, now: datetime
) -> Decision:
    number = seen.attempt + 1
    message = f"{what}; attempt {number} follows"
    status = change(
        seen.status,
        phase=Phase.Restarting,
        attempt=number,
        restarts=restarts,
        nodes=nodes,
        last_failure=failure,
    )
    status = condition(
        status,
        "Running",
        true=False,
        reason=Reason.Restarting,
        message=message,
        stamp=Stamp(seen.job.generation, now),
    )
    leftovers = tuple(child for child in seen.children if not child.deleting)
    event = Event(Reason.Restarting, message, "Warning")
    return Decision(status=status, delete=leftovers, events=(event,), look_again_in=0.0)


def _end(seen: Observed, failure: LastFailure, *, reason: Reason, message: str, now: datetime) -> Decision:
    """The Job stays, with its logs; its Job controller ends the pods that still run."""
    status = change(seen.status, phase=Phase.Failed, completion_time=rfc3339(now), last_failure=failure)
    message = f"{message} ({failure.hint})" if failure.hint else message
    stamp = Stamp(seen.job.generation, now)
    if seen.attempt:
        status = condition(status, "Running", true=False, reason=reason, message=message, stamp=stamp)
    status = condition(status, "Failed", true=True, reason=reason, message=message, stamp=stamp)
    return Decision(status=status, events=(Event(reason, message, "Warning"),))
