"""Deadlines: what happens at each, and that the operator wakes up for it and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.decide import decide
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import find, rfc3339
from finetune_operator.state.views import Waiting
from tests.support.operator_objects import NOW, SPEC, child, job, later, pod, seen, spec, status, suspended

RUNNING = (pod(0, "Running", node="n0"), pod(1, "Running"))
SILENT_NODE = (pod(0, "Running", node="n0", unreachable=True), RUNNING[1])
MUTE_AGENT = (pod(0, "Running", node="n0", mute=True), RUNNING[1])
MINUTE, HOUR = 60, 3600


def limits(**fields: str) -> Any:
    return spec(deadlines=fields)


def starting(**fields: Any) -> Observed:
    return seen(job(status(Phase.Pending, start_time=rfc3339(NOW))), children=(child(),), **fields)


def running(**fields: Any) -> Observed:
    now = status(Phase.Running, start_time=rfc3339(NOW))
    return seen(job(now), **{"children": (child(),), "pods": RUNNING} | fields)


def finished(**fields: Any) -> Observed:
    done = status(Phase.Succeeded, completion_time=rfc3339(NOW))
    return seen(job(done), children=(child(complete=True, finished=True),), **fields)


WAKES: list[tuple[str, Observed, float | None]] = [
    ("no pods: asked about first", starting(), 10),
    ("all pods made: the startup deadline", starting(pods=(pod(0), pod(1))), 30 * MINUTE),
    ("one runs, one does not", starting(pods=(pod(0, "Running"), pod(1))), 30 * MINUTE),
    ("the user's", starting(pods=(pod(0), pod(1)), spec=limits(startup="90s")), 90),
    ("the active deadline comes first", starting(pods=(pod(0), pod(1)), spec=limits(active="20m")), 20 * MINUTE),
    ("it runs: nothing to wait for", running(), None),
    ("it runs, for a day at most", running(spec=limits(active="1d")), 24 * HOUR),
    ("it runs and answers: silence is counted by asking", running(heard=NOW), None),
    ("it has ended", finished(), None),
    ("it has ended, and is kept for an hour", finished(spec=spec(ttl_after_finished="1h")), HOUR),
    (
        "it was suspended",
        seen(suspended(job(status(Phase.Suspended, start_time=None))), spec=limits(active="1h")),
        None,
    ),
]


@pytest.mark.parametrize(("given", "wait"), [w[1:] for w in WAKES], ids=[w[0] for w in WAKES])
def test_the_operator_wakes_up_for_the_next(given: Observed, wait: float | None) -> None:
    assert decide(given, NOW).look_again_in == wait


@pytest.mark.parametrize(("given", "wait"), [w[1:] for w in WAKES[1:]], ids=[w[0] for w in WAKES[1:]])
def test_a_second_before_nothing_has_happened(given: Observed, wait: float | None) -> None:
    if wait:
        before, at = decide(given, NOW).status, decide(given, later(wait - 1))
        assert (at.status.phase, at.status.attempt, at.expired) == (before.phase, before.attempt, False)


def test_a_gang_that_does_not_start_gives_its_nodes_back() -> None:
    decision = decide(starting(pods=(pod(0, "Running"), pod(1))), later(30 * MINUTE))
    after = decision.status
    assert after.restarts is not None
    assert after.last_failure is not None
    assert (after.phase, after.attempt, after.restarts.counted) == (Phase.Restarting, 2, 1)
    assert (after.last_failure.failure_class.value, after.last_failure.reason) == ("Infrastructure", "StartupDeadline")
    assert [each.name for each in decision.delete] == ["a-1"]


def test_it_says_what_was_missing() -> None:
    secret = Waiting("CreateContainerConfigError", 'secret "corp-s3" not found')
    gang = (pod(0, scheduled=NOW, node="n0", waiting=secret), pod(1))
    told = decide(starting(pods=gang), later(5)).status
    given = seen(job(told), children=(child(),), pods=gang, spec=spec(retry={"max_restarts": 0}))
    after = decide(given, later(30 * MINUTE)).status
    failed = find(after, "Failed")
    assert failed is not None
    assert after.phase is Phase.Failed
    assert 'secret "corp-s3" not found' in failed.message
    assert "Create the Secret" in failed.message


LAST_TRY = [
    ("half a gang", starting(pods=(pod(0, "Running"), pod(1)), spec=spec(retry={"max_restarts": 0})), ["a-1"]),
    ("a silent node", running(heard=NOW, silence=900, pods=SILENT_NODE, spec=spec(retry={"max_restarts": 0})), ["a-1"]),
    (
        "a pod that failed",
        replace(running(), pods=(pod(0, "Failed"), pod(1, "Running")), spec=spec(retry={"max_restarts": 0})),
        [],
    ),
]


@pytest.mark.parametrize(("given", "gone"), [row[1:] for row in LAST_TRY], ids=[row[0] for row in LAST_TRY])
def test_where_no_attempt_follows_the_nodes_are_given_back_too(given: Observed, gone: list[str]) -> None:
    """By the Job controller, which keeps the logs, if a pod failed; else by us, also after a crash in between."""
    decision = decide(given, later(30 * MINUTE))
    assert decision.status.phase is Phase.Failed
    assert [each.name for each in decision.delete] == gone
    successor = replace(given, job=job(decision.status))
    assert [each.name for each in decide(successor, later(31 * MINUTE)).delete] == gone


def test_a_restarted_gang_has_its_own_time() -> None:
    view = job(status(Phase.Restarting, 2, counted=1))
    given = seen(view, children=(child(2, created=later(HOUR)),), pods=(pod(0, attempt=2), pod(1, attempt=2)))
    assert decide(given, later(HOUR)).look_again_in == 30 * MINUTE


def test_a_job_that_takes_too_long_has_failed_and_its_pods_end() -> None:
    decision = decide(running(spec=limits(active="1h")), later(HOUR))
    failed = find(decision.status, "Failed")
    assert failed is not None
    assert (decision.status.phase, failed.reason) == (Phase.Failed, "DeadlineExceeded")
    assert "deadlines.active" in failed.message
    assert [each.name for each in decision.delete] == ["a-1"]
    assert decide(seen(job(decision.status), spec=limits(active="1h")), later(2 * HOUR)).look_again_in is None


def test_a_job_that_ended_in_time_has_not_failed() -> None:
    given = replace(running(spec=limits(active="1h")), pods=(pod(0, "Succeeded"), pod(1, "Succeeded")))
    assert decide(given, later(2 * HOUR)).status.phase is Phase.Succeeded


def test_suspending_stops_the_clock_and_resuming_starts_it_anew() -> None:
    hour = limits(active="1h")
    over = decide(
        seen(suspended(job(running().status)), children=(child(),), pods=RUNNING, spec=hour), later(50)
    ).status
    assert decide(seen(suspended(job(over)), spec=hour), later(9 * HOUR)).status.phase is Phase.Suspended
    resumed = decide(seen(job(over), spec=hour), later(9 * HOUR))
    assert (resumed.status.start_time, resumed.look_again_in) == (rfc3339(later(9 * HOUR)), HOUR)


READY = (pod(0, "Running", node="n0", ready=True), RUNNING[1])

SILENT: list[tuple[str, Observed, Phase]] = [
    ("long enough, and so is its node", running(heard=NOW, silence=900, pods=SILENT_NODE), Phase.Restarting),
    ("long enough, and its kubelet gets no answer either", running(heard=NOW, silence=900, pods=MUTE_AGENT),
     Phase.Restarting),
    ("not long enough", running(heard=NOW, silence=899, pods=SILENT_NODE), Phase.Running),
    ("not long enough for its kubelet", running(heard=NOW, silence=899, pods=MUTE_AGENT), Phase.Running),
    ("only the kubelet gets no answer", running(heard=NOW, silence=0, pods=MUTE_AGENT), Phase.Running),
    ("by its own stall", running(heard=NOW, silence=360, spec=limits(stall="1m"), pods=SILENT_NODE), Phase.Restarting),
    ("for ever, but its kubelet speaks, and says that the pod is not ready",
     running(heard=NOW, silence=9e9), Phase.Running),
    ("for ever, but Kubernetes calls the pod ready",
     replace(running(heard=NOW, silence=9e9), pods=READY), Phase.Running),
    ("it has never answered in this term", running(heard=None, silence=900), Phase.Running),
    ("its pod is not known", replace(running(heard=NOW, silence=900), pods=(pod(1, "Running"),)), Phase.Running),
]  # fmt: skip


@pytest.mark.parametrize(("given", "then"), [row[1:] for row in SILENT], ids=[row[0] for row in SILENT])
@pytest.mark.parametrize("after", [0, 9e6])
def test_silence_is_counted_in_asks_and_never_in_time(given: Observed, then: Phase, after: float) -> None:
    assert decide(given, later(after)).status.phase is then


def test_a_node_that_fell_silent_hangs() -> None:
    after = decide(running(heard=NOW, silence=900, pods=SILENT_NODE), later(15 * MINUTE)).status
    assert after.last_failure is not None
    assert (after.last_failure.failure_class.value, after.last_failure.node) == ("Hang", "n0")


def test_an_agent_that_does_not_answer_is_told_of_while_its_pod_works() -> None:
    mute = replace(running(heard=NOW, silence=300), pods=READY)
    told = find(decide(mute, NOW).status, "Running")
    assert told is not None
    assert (told.status, "does not answer the operator" in told.message) == ("True", True)
    again = find(decide(replace(mute, silence=0.0), NOW).status, "Running")
    assert again is not None
    assert "does not answer" not in again.message


def test_a_job_is_deleted_when_its_time_after_the_end_is_over() -> None:
    given = finished(spec=spec(ttl_after_finished="1h"))
    assert not decide(given, later(HOUR - 1)).expired
    assert decide(given, later(HOUR)).expired
    going = replace(given, job=job(given.status, deleting=True))
    assert not decide(going, later(HOUR)).expired
    failed = FineTuneJobStatus(phase=Phase.Failed, completion_time=rfc3339(NOW))
    assert decide(seen(job(failed), spec=spec(ttl_after_finished="0s")), NOW).expired


def test_a_ttl_that_only_an_earlier_version_took_keeps_an_ended_job() -> None:
    """Until after the last year that a time can have."""
    done = status(Phase.Succeeded, completion_time=rfc3339(NOW))
    view = job(done, ended=True, raw_spec=SPEC | {"ttlAfterFinished": "999999d" * 4})
    after = decide(seen(view, spec=None), later(9e9))
    assert (after.expired, after.status) == (False, view.status.model_copy(update={"observed_generation": 1}))
