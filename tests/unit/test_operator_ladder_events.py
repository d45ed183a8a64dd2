"""The story of a ladder in events: each decision once, from the status as it was before."""

from __future__ import annotations

from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.plan import ProgressReport
from finetune_api.status import FineTuneJobStatus, Phase, Progress
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from tests.support.operator_objects import NOW, child, job, later, pod, seen, status

TAKEN = RungStatus(
    name="lora", state="done", decision="taken", gain=0.05, low=0.02, high=0.08, reason="gain above 0.01."
)
RUNNING = RungStatus(name="full", state="running")
NO_GAIN = RungStatus(name="full", state="done", decision="noGain")


def ladder(*rungs: RungStatus, **fields: object) -> LadderStatus:
    return LadderStatus.model_validate({"rule": "few-rows", "rungs": rungs, "spent": 1.5, "budget": 4.0, **fields})


def after(given: FineTuneJobStatus, told: LadderStatus, at: float) -> Decision:
    report = ProgressReport(attempt=1, phase="training", progress=Progress(step=int(at)), ladder=told)
    pods = (pod(0, "Running"), pod(1, "Running"))
    return decide(seen(job(given), children=(child(),), pods=pods, report=report), later(at))


def test_a_decision_is_told_once_with_its_interval_and_the_cost_so_far() -> None:
    first = after(status(Phase.Running), ladder(TAKEN, RUNNING), 0)
    (event,) = first.events
    assert (event.reason, event.type) == ("RungDecided", "Normal")
    assert event.message == (
        "Rung lora: taken (gain +0.05, interval +0.02 to +0.08): gain above 0.01. "
        "So far the ladder cost 1.5 of 4 GPU hours."
    )
    assert not after(first.status, ladder(TAKEN, RUNNING, spent=1.6), 60).events
    second = after(first.status, ladder(TAKEN, NO_GAIN, stopReason="noGain", story="Full was no better."), 120)
    assert [(each.reason, each.message.partition(".")[0]) for each in second.events] == [
        ("RungDecided", "Rung full: noGain"),
        ("LadderStopped", "Full was no better"),
    ]
    earlier = "Rung lora: taken (gain +0.05, interval +0.02 to +0.08)."
    assert second.events[0].message.endswith(f" {earlier}"), "it replaces the message of the first, by its name"
    assert not after(
        second.status, ladder(TAKEN, NO_GAIN, stopReason="noGain", story="Full was no better."), 180
    ).events


def test_nothing_is_told_before_a_decision_or_without_a_ladder() -> None:
    assert not after(status(Phase.Running), ladder(RUNNING), 0).events
    assert not decide(seen(job(status(Phase.Running)), children=(child(),)), NOW).events
