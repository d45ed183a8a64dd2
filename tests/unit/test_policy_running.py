"""The status of an attempt whose pods start and run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.plan import ProgressReport
from finetune_api.status import (
    FineTuneJobStatus,
    Phase,
    Progress,
)
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from finetune_operator.kube.resources import FINETUNEJOBS
from finetune_operator.policies.running import PROGRESS_WRITES, pause_after
from finetune_operator.state.agent_contact import AgentContact
from finetune_operator.state.cache import Cache
from finetune_operator.state.notes import PodsRefused, Report
from finetune_operator.state.observe import observe
from finetune_operator.state.status import rfc3339
from tests.support.operator_objects import (
    DEFAULTS,
    NOW,
    child,
    job,
    later,
    pod,
    raw_job,
    seen,
    status,
)

RUNNING = (pod(0, "Running"), pod(1, "Running"))


def test_pods_that_have_nodes_for_a_moment_are_starting() -> None:
    pods = (pod(0, scheduled=NOW), pod(1, scheduled=NOW))
    given = seen(job(status(Phase.Pending)), children=(child(),), pods=pods)
    soon = decide(given, later(1))
    assert (soon.status.phase, soon.look_again_in) == (Phase.Pending, 4)
    assert decide(given, later(5)).status.phase is Phase.Starting


def report(step: int, **fields: Any) -> ProgressReport:
    return ProgressReport(attempt=1, phase="training", progress=Progress(step=step, total_steps=10, **fields))


def progressed(given: FineTuneJobStatus, told: ProgressReport, at: float, **fields: Any) -> Decision:
    return decide(seen(job(given), children=(child(),), pods=RUNNING, report=told, **fields), later(at))


def test_progress_is_written_when_it_moved_and_not_too_often() -> None:
    running = decide(seen(job(status(Phase.Pending)), children=(child(),), pods=RUNNING), NOW).status
    first = progressed(running, report(1, loss=2.0), 0).status
    assert first.progress is not None
    assert (first.progress.step, first.progress.last_update_time) == (1, rfc3339(NOW))
    assert progressed(first, report(1, loss=2.0, tokens_per_second=9.0), 60).status == first
    early = progressed(first, report(2), 5)
    assert (early.status, early.look_again_in) == (first, 10)
    later_on = progressed(first, report(2), 15).status.progress
    assert later_on is not None
    assert later_on.step == 2


@pytest.mark.parametrize(("jobs", "least", "most"), [(0, 15, 15), (600, 15, 15), (1200, 15, 45), (5000, 15, 140)])
def test_many_jobs_together_write_no_more_progress_than_few(jobs: int, least: float, most: float) -> None:
    running = decide(seen(job(status(Phase.Pending)), children=(child(),), pods=RUNNING), NOW).status
    first = progressed(running, report(1), 0).status

    early = progressed(first, report(2), 5, followed=jobs)
    assert early.status == first
    assert early.look_again_in is not None
    after = early.look_again_in + 5
    assert least <= after <= most
    told = progressed(first, report(2), after, followed=jobs).status.progress
    assert told is not None
    assert told.step == 2
    learned = report(2).model_copy(update={"ladder": LadderStatus(rule="x", rungs=())})
    assert progressed(first, learned, 15, followed=jobs).status.ladder is not None, "a result does not wait"


def test_jobs_that_wrote_their_progress_at_the_same_moment_do_not_do_so_again() -> None:
    jobs, writes = 5000, Counter[int]()
    for number in range(jobs):
        at = 0.0
        while at < 1200:
            at += pause_after(later(at), f"uid-{number}", jobs)
            writes[int(at // 10)] += 1
    assert max(writes[ten] for ten in range(2, 120)) < 1.3 * 10 * PROGRESS_WRITES
    assert sum(writes[ten] for ten in range(2, 120)) < 1.05 * 1180 * PROGRESS_WRITES


def test_a_job_knows_how_many_others_report_progress() -> None:
    """Jobs that wait have notes, too; thousands of them must not slow down what running jobs write."""
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job())
    for name in ("a", "b", "c"):
        cache.note(("ml", name), report=Report("u", report(1)))
    for name in ("queued", "refused"):
        cache.note(("ml", name), pods_refused=PodsRefused("u", "exceeded quota"))

    def followed() -> int:
        found = observe(cache, ("ml", "a"), DEFAULTS)
        assert found is not None
        return found.followed

    assert followed() == 3
    cache.note(("ml", "b"), report=None)
    cache.note(("ml", "c"), contact=AgentContact("u", 1, NOW))
    assert followed() == 2
    cache.forget(("ml", "c"))
    assert followed() == 1


def test_a_loss_that_is_no_number_does_not_reach_the_status() -> None:
    running = decide(seen(job(status(Phase.Pending)), children=(child(),), pods=RUNNING), NOW).status
    progress = progressed(running, report(1, loss=float("nan")), 0).status.progress
    assert progress is not None
    assert progress.loss is None


def test_a_rung_that_is_done_is_written_even_if_no_step_was_made() -> None:
    running = decide(seen(job(status(Phase.Pending)), children=(child(),), pods=RUNNING), NOW).status
    first = progressed(running, report(1), 0).status
    ladder = LadderStatus(rule="x", rungs=(RungStatus(name="probe", state="done", score=0.9),))
    told = report(1).model_copy(update={"ladder": ladder})
    after = progressed(first, told, 15).status
    assert after.ladder == ladder
    assert progressed(after, told, 60).status == after
    assert progressed(after, report(2), 60).status.ladder == ladder, "an agent that has just started knows none yet"
    broken = ladder.model_copy(update={"spent": float("nan")})
    assert progressed(after, report(2).model_copy(update={"ladder": broken}), 60).status.ladder == ladder
