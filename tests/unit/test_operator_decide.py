"""The story of a job by its table: given what is seen, then this is decided."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import Reason
from finetune_api.status import (
    Phase,
)
from finetune_operator import decide as decide_module
from finetune_operator import policies
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from finetune_operator.policies import STORY as STORY_OF_POLICIES
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import find, is_true, rfc3339
from tests.support.operator_objects import (
    NOW,
    child,
    ended,
    failed_pod,
    job,
    later,
    pod,
    seen,
    status,
    suspended,
    words,
)

RUNNING = (pod(0, "Running"), pod(1, "Running"))
FAILED = (pod(0, "Failed"), pod(1, "Failed"))


def made(decision: Decision) -> list[str]:
    return [create.body["metadata"]["name"] for create in decision.create]


def gone(decision: Decision) -> list[str]:
    return [each.name for each in decision.delete]


def outcome(given: Observed, at: float = 0) -> tuple[str | None, int | None, list[str], list[str]]:
    decision = decide(given, later(at))
    return (
        decision.status.phase and decision.status.phase.value,
        decision.status.attempt,
        made(decision),
        gone(decision),
    )


STORY: list[tuple[str, Observed, tuple[str | None, int | None, list[str], list[str]]]] = [
    ("a new job: its first attempt is numbered and made",
     seen(job()), ("Pending", 1, ["a", "a-1"], [])),
    ("numbered, but the operator died before it made the Job",
     seen(job(status(Phase.Pending))), ("Pending", 1, ["a", "a-1"], [])),
    ("made, no pods yet",
     seen(job(status(Phase.Pending)), children=(child(),)), ("Pending", 1, [], [])),
    ("one of two runs",
     seen(job(status(Phase.Pending)), children=(child(),), pods=(pod(0, "Running"), pod(1))), ("Pending", 1, [], [])),
    ("all run",
     seen(job(status(Phase.Pending)), children=(child(),), pods=RUNNING), ("Running", 1, [], [])),
    ("one has finished, the other runs on",
     seen(job(status(Phase.Running)), children=(child(),), pods=(pod(0, "Running"), pod(1, "Succeeded"))),
     ("Running", 1, [], [])),
    ("all succeeded",
     seen(job(status(Phase.Running)), children=(child(),), pods=(pod(0, "Succeeded"), pod(1, "Succeeded"))),
     ("Succeeded", 1, [], [])),
    ("the Job says complete, its pods are gone already",
     seen(job(status(Phase.Running)), children=(child(complete=True, finished=True),)), ("Succeeded", 1, [], [])),
    ("one failed: the next number, and the old Job goes",
     seen(job(status(Phase.Running)), children=(child(),), pods=(failed_pod(1, Reason.UnexpectedError), RUNNING[0])),
     ("Restarting", 2, [], ["a-1"])),
    ("the old gang still ends",
     seen(job(status(Phase.Restarting, 2)), children=(child(deleting=True),), pods=(pod(0, "Running"),)),
     ("Restarting", 2, [], [])),
    ("the old gang has ended, its Job is on its way out",
     seen(job(status(Phase.Restarting, 2)), children=(child(deleting=True),), pods=FAILED),
     ("Restarting", 2, ["a", "a-2"], [])),
    ("the old Job is gone",
     seen(job(status(Phase.Restarting, 2))), ("Restarting", 2, ["a", "a-2"], [])),
    ("the old Job is gone, but one of its pods is not",
     seen(job(status(Phase.Restarting, 2)), pods=(pod(1, "Running"),)), ("Restarting", 2, [], [])),
    ("the operator died before it deleted the old Job",
     seen(job(status(Phase.Restarting, 2)), children=(child(),), pods=RUNNING), ("Restarting", 2, [], ["a-1"])),
    ("the new gang runs",
     seen(job(status(Phase.Restarting, 2)), children=(child(2),), pods=(pod(0, "Running", 2), pod(1, "Running", 2))),
     ("Running", 2, [], [])),
    ("no restart can help",
     seen(job(status(Phase.Pending)), children=(child(),), pods=(failed_pod(0, Reason.DataEmpty), pod(1))),
     ("Failed", 1, [], [])),
    ("the budget is spent",
     seen(job(status(Phase.Running, 4, counted=3)), children=(child(4),),
          pods=(failed_pod(0, Reason.UnexpectedError, attempt=4),)),
     ("Failed", 4, [], [])),
    ("preemption costs nothing",
     seen(job(status(Phase.Running, 4, counted=3)), children=(child(4),),
          pods=(pod(0, "Failed", 4, disruption="PreemptionByScheduler", disrupted=NOW),)),
     ("Restarting", 5, [], ["a-4"])),
    ("somebody deleted the Job",
     seen(job(status(Phase.Running))), ("Restarting", 2, [], [])),
    ("somebody is deleting the Job",
     seen(job(status(Phase.Running)), children=(child(deleting=True),), pods=RUNNING), ("Restarting", 2, [], [])),
    ("to be suspended",
     seen(suspended(job(status(Phase.Running))), children=(child(),), pods=RUNNING), ("Suspended", 1, [], ["a-1"])),
    ("suspended, the Job is still there: the operator died before it deleted it",
     seen(suspended(job(status(Phase.Suspended))), children=(child(),), pods=RUNNING), ("Suspended", 1, [], ["a-1"])),
    ("suspended, and its pods say that they were interrupted",
     seen(suspended(job(status(Phase.Suspended))), children=(child(deleting=True),),
          pods=(failed_pod(0, Reason.Interrupted),)),
     ("Suspended", 1, [], [])),
    ("suspended before it began",
     seen(suspended(job())), ("Suspended", None, [], [])),
    ("resumed, while the old pods still checkpoint",
     seen(job(status(Phase.Suspended)), children=(child(deleting=True),), pods=RUNNING), ("Pending", 2, [], [])),
    ("resumed, all is quiet",
     seen(job(status(Phase.Suspended))), ("Pending", 2, ["a", "a-2"], [])),
    ("succeeded just before it was suspended",
     seen(suspended(job(status(Phase.Running))), children=(child(complete=True, finished=True),)),
     ("Succeeded", 1, [], [])),
    ("ended, and its children were deleted",
     seen(job(status(Phase.Succeeded))), ("Succeeded", 1, [], [])),
    ("ended, and suspended afterwards",
     seen(suspended(job(status(Phase.Failed))), children=(child(finished=True),)), ("Failed", 1, [], [])),
    ("the spec cannot be read",
     seen(job(status(Phase.Pending)), children=(child(),), spec=None, problem="spec.nodes: must be a number"),
     ("Failed", 1, [], ["a-1"])),
    ("being deleted: what it owns goes with it",
     seen(job(status(Phase.Running), deleting=True)), ("Running", 1, [], [])),
    ("its status was lost, its Job was not",
     seen(job(), children=(child(3),), pods=(pod(0, "Running", 3), pod(1, "Running", 3))), ("Pending", 3, [], [])),
]  # fmt: skip


@pytest.mark.parametrize(("given", "then"), [t[1:] for t in STORY], ids=[t[0] for t in STORY])
def test_the_story(given: Observed, then: tuple[Any, ...]) -> None:
    assert outcome(given) == then


@pytest.mark.parametrize("given", [t[1] for t in STORY], ids=[t[0] for t in STORY])
def test_a_status_once_written_is_not_written_again(given: Observed) -> None:
    """The same view with the status that was decided: nothing more to write, but maybe a later look."""
    first = decide(given, NOW)
    again = replace(given, job=job(first.status, **_as_it_was(given)))
    second = decide(again, NOW)
    if second.status.attempt == first.status.attempt and second.status.phase == first.status.phase:
        assert second.status == first.status


def _as_it_was(given: Observed) -> dict[str, Any]:
    return {"raw_spec": given.job.raw_spec, "deleting": given.job.deleting}


def test_conditions_of_a_life() -> None:
    start = decide(seen(job()), NOW).status
    assert (find(start, "Running").reason, is_true(start, "Running")) == ("GangCreated", False)  # type: ignore[union-attr]
    up = decide(seen(job(start), children=(child(),), pods=RUNNING), later(5)).status
    assert is_true(up, "Running")
    over = decide(seen(suspended(job(up)), children=(child(),), pods=RUNNING), later(9)).status
    assert (is_true(over, "Suspended"), is_true(over, "Running"), over.start_time) == (True, False, None)
    resumed = decide(seen(job(over, generation=3)), later(12)).status
    again = find(resumed, "Suspended")
    assert again is not None
    assert (again.status, again.reason, again.observed_generation) == ("False", "Resumed", 3)
    assert resumed.start_time == rfc3339(later(12))


def test_a_transition_time_moves_only_when_the_condition_flips() -> None:
    start = decide(seen(job()), NOW).status
    failed = decide(
        seen(job(start), children=(child(),), pods=(failed_pod(0, Reason.UnexpectedError),)), later(60)
    ).status
    before, after = find(start, "Running"), find(failed, "Running")
    assert before is not None
    assert after is not None
    assert (after.reason, after.last_transition_time) == ("Restarting", before.last_transition_time)


def test_the_latest_generation_is_acknowledged() -> None:
    assert decide(seen(job(status(Phase.Succeeded), generation=7)), NOW).status.observed_generation == 7


def test_words_of_an_earlier_attempt_do_not_count() -> None:
    old = pod(0, "Failed", 1, ended=ended(65, words=words(Reason.DataEmpty)))
    given = seen(
        job(status(Phase.Restarting, 2)), children=(child(2),), pods=(old, pod(0, "Running", 2), pod(1, "Running", 2))
    )
    assert decide(given, NOW).status.phase is Phase.Running


def test_the_docstring_tells_the_story_in_order() -> None:
    """decide's docstring is what people read: it names each policy of the story, in its order."""
    told = re.findall(r"^    (\w+\.\w+) {2,}\S", decide_module.__doc__ or "", re.MULTILINE)
    assert told == [f"{policy.__module__.rpartition('.')[2]}.{policy.__name__}" for policy in STORY_OF_POLICIES]


def test_each_policy_has_a_test_of_its_own() -> None:
    folder = Path(policies.__file__).parent
    twins = {path.stem for path in Path(__file__).parent.glob("test_policy_*.py")}
    assert {f"test_policy_{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"} == twins
