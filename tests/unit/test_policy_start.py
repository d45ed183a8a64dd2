"""When an attempt's Job is created: after its number, after a pause, and after the pods of the attempt before."""

from __future__ import annotations

from finetune_api.status import (
    FailureClass,
    LastFailure,
    Phase,
)
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from finetune_operator.state.status import find, rfc3339
from tests.support.operator_objects import (
    NOW,
    child,
    job,
    later,
    pod,
    seen,
    status,
)


def made(decision: Decision) -> list[str]:
    return [create.body["metadata"]["name"] for create in decision.create]


def test_a_first_gang_is_made_without_asking_who_else_runs_and_a_second_is_not() -> None:
    assert decide(seen(job()), NOW).alone is False
    assert decide(seen(job(status(Phase.Restarting, 2))), NOW).alone is True


def test_restarts_pause_longer_each_time() -> None:
    def wait(restarts: int) -> float | None:
        failure = LastFailure(
            failure_class=FailureClass.Internal, reason="UnexpectedError", time=rfc3339(NOW), attempt=restarts
        )
        given = seen(job(status(Phase.Restarting, restarts + 1, counted=restarts, last_failure=failure)))
        return decide(given, NOW).look_again_in

    assert [wait(n) for n in (1, 2, 3, 4, 20)] == [None, 10, 20, 40, 300]


def test_pods_that_do_not_end_are_named_when_they_should_have_ended() -> None:
    failure = LastFailure(failure_class=FailureClass.Infrastructure, reason="NodeLost", time=rfc3339(NOW))
    before = status(Phase.Restarting, 2, counted=1, last_failure=failure)
    stuck = pod(1, "Running", node="gpu-7", deleting=True, ends=later(120))
    given = seen(job(before), children=(child(deleting=True),), pods=(stuck,))
    assert find(decide(given, later(179)).status, "Running") is None
    told = find(decide(given, later(180)).status, "Running")
    assert told is not None
    assert (told.reason, "a-1-1-x on node gpu-7" in told.message) == ("Restarting", True)
    assert made(decide(given, later(9999))) == [], "two attempts never run at once"
