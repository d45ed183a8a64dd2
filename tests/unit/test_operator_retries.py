"""Restarts over the life of a job: which are counted, how long they count, and how long each waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus, Phase, Restarts
from finetune_operator.decide import decide
from finetune_operator.state.status import failure_of, rfc3339
from tests.support.operator_objects import child, ended, failed_pod, job, later, pod, seen, spec, status

DAY = 86400.0


def fails(before: FineTuneJobStatus, at: float, reason: Reason = Reason.PodFailed, **fields: Any) -> FineTuneJobStatus:
    """The status after the present attempt has failed at that time."""
    attempt = before.attempt or 1
    gang = (failed_pod(0, reason, at=at, attempt=attempt), pod(1, "Running", attempt))
    view = job(before.model_copy(update={"phase": Phase.Running}))
    return decide(seen(view, children=(child(attempt),), pods=gang, **fields), later(at)).status


def test_four_node_faults_in_sixty_days_end_no_run() -> None:
    told = status(Phase.Running)
    for day in (0, 20, 40, 60):
        told = fails(told, day * DAY)
        assert told.phase is Phase.Restarting, f"day {day}"
    assert told.restarts == Restarts(counted=4)
    assert told.restart_times == (rfc3339(later(60 * DAY)),)


def test_four_node_faults_in_a_day_do() -> None:
    told = status(Phase.Running)
    for hour in range(4):
        told = fails(told, hour * 3600)
    assert (told.phase, told.restarts) == (Phase.Failed, Restarts(counted=3))


def test_the_window_is_the_jobs_own() -> None:
    own = spec(retry={"max_restarts": 1, "window": "1h"})
    told = fails(status(Phase.Running), 0, spec=own)
    assert fails(told, 3599, spec=own).phase is Phase.Failed
    assert fails(told, 3601, spec=own).phase is Phase.Restarting


def test_counts_of_a_version_without_windows_are_kept() -> None:
    assert fails(status(Phase.Running, 4, counted=3), 0).phase is Phase.Failed
    told = fails(status(Phase.Running, 3, counted=2), 0)
    assert (told.restarts, told.restart_times) == (Restarts(counted=3), (rfc3339(later(0)),) * 3)


def pause(told: FineTuneJobStatus, at: float) -> float | None:
    return decide(seen(job(told)), later(at)).look_again_in


def test_what_is_forgotten_makes_no_pause_either() -> None:
    soon = fails(fails(status(Phase.Running), 0), 60)
    assert pause(soon, 60) == 10
    late = fails(fails(status(Phase.Running), 0), 30 * DAY)
    assert pause(late, 30 * DAY) is None, "made at once"


KILLED = {"reason": "OOMKilled"}


def test_memory_that_is_counted_waits_as_every_counted_restart_does() -> None:
    """Nobody said what micro-batch it used, so that cannot be halved."""
    told, at = status(Phase.Running), 0.0
    pauses = []
    for _ in range(3):
        attempt = told.attempt or 1
        gang = (pod(0, "Failed", attempt, ended=ended(137, at=at, **KILLED)), pod(1, "Running", attempt))
        view = job(told.model_copy(update={"phase": Phase.Running}))
        told = decide(seen(view, children=(child(attempt),), pods=gang), later(at)).status
        pauses.append(pause(told, at))
        at += 600
    assert told.restarts == Restarts(counted=3)
    assert pauses == [None, 10, 20]


@pytest.mark.parametrize(
    ("times", "then"), [(None, None), ((600.0,), 10), ((1.0,), None)], ids=["unknown", "counted", "halved"]
)
def test_memory_is_counted_only_where_it_was(times: tuple[float, ...] | None, then: float | None) -> None:
    """After both: a restart with half the micro-batch is made at once, a counted one waits."""
    failure = failure_of(Reason.OutOfMemory, "m", attempt=1, at=later(600))
    known = None if times is None else tuple(rfc3339(later(at)) for at in (0.0, *times))
    told = status(Phase.Restarting, 2, last_failure=failure, restart_times=known)
    told = told.model_copy(update={"restarts": Restarts(counted=2, out_of_memory=1)})
    assert pause(told, 600) == then


def test_a_missing_reference_is_waited_for_and_no_mistake_for_ever() -> None:
    failure = failure_of(Reason.ReferenceMissing, "m", attempt=1, at=later(0))
    assert failure.failure_class.value == "Infrastructure"
    given = replace(job(status(Phase.Pending)), status=status(Phase.Pending, last_failure=failure))
    assert decide(seen(given, children=(child(),), pods=(pod(0), pod(1))), later(1)).status.phase is Phase.Pending
