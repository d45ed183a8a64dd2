"""Deadlines: what happens at each, and that the operator wakes up for it and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.cache import Cache, Heard
from finetune_operator.decide import decide
from finetune_operator.observe import Observed, observe
from finetune_operator.status import find, rfc3339
from finetune_operator.views import Waiting
from tests.unit.operator_world import DEFAULTS, NOW, child, job, later, pod, raw_job, seen, spec, status, suspended

RUNNING = (pod(0, "Running", node="n0"), pod(1, "Running"))
MINUTE, HOUR = 60, 3600


def limits(**fields: str) -> Any:
    return spec(deadlines=fields)


def starting(**fields: Any) -> Observed:
    return seen(job(status(Phase.Pending, start_time=rfc3339(NOW))), children=(child(),), **fields)


def running(**fields: Any) -> Observed:
    now = status(Phase.Running, start_time=rfc3339(NOW))
    return seen(job(now), children=(child(),), pods=RUNNING, **fields)


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
    ("it runs and answers", running(heard=NOW), 15 * MINUTE),
    ("it runs and answers, with a stall of its own", running(heard=NOW, spec=limits(stall="1m")), 6 * MINUTE),
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
    ("a silent node", running(heard=NOW, spec=spec(retry={"max_restarts": 0})), ["a-1"]),
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


def test_a_node_that_fell_silent_hangs() -> None:
    given = running(heard=NOW)
    after = decide(given, later(15 * MINUTE)).status
    assert after.last_failure is not None
    assert (after.last_failure.failure_class.value, after.last_failure.node) == ("Hang", "n0")
    assert after.phase is Phase.Restarting


def test_only_answers_of_this_attempt_count_and_silence_of_all_is_seen() -> None:
    cache, other = Cache(), ("ml", "b")
    cache.jobs.put(raw_job(status=status(Phase.Running, 2).to_json()))

    def look() -> tuple[Any, bool]:
        found = observe(cache, ("ml", "a"), DEFAULTS)
        assert found is not None
        return found.heard, found.deaf

    assert look() == (None, False)
    cache.heard[("ml", "a")] = Heard("u", 1, NOW)
    assert look()[0] is None, "of the attempt before"
    cache.heard[("ml", "a")], cache.heard_anybody = Heard("u", 2, NOW), NOW
    assert look() == (NOW, False)
    cache.heard[other] = Heard("v", 1, NOW)
    assert look() == (NOW, True), "the other has not answered since, either"
    cache.heard[other], cache.heard_anybody = Heard("v", 1, later(60)), later(60)
    assert look() == (NOW, False)


def test_an_operator_that_hears_nobody_blames_nobody() -> None:
    decision = decide(running(heard=NOW, deaf=True), later(20 * MINUTE))
    assert (decision.status.phase, decision.look_again_in) == (Phase.Running, 5 * MINUTE)


def test_a_job_is_deleted_when_its_time_after_the_end_is_over() -> None:
    given = finished(spec=spec(ttl_after_finished="1h"))
    assert not decide(given, later(HOUR - 1)).expired
    assert decide(given, later(HOUR)).expired
    going = replace(given, job=job(given.status, deleting=True))
    assert not decide(going, later(HOUR)).expired
    failed = FineTuneJobStatus(phase=Phase.Failed, completion_time=rfc3339(NOW))
    assert decide(seen(job(failed), spec=spec(ttl_after_finished="0s")), NOW).expired
