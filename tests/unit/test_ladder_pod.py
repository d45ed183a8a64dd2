"""A ladder in a pod, without training: what the agent decides, what it reports, and what it never pays twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.methods import TRAITS
from finetune_api.names import TERMINATION_LIMIT
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.status import FailureClass, ResolvedPlan
from finetune_operator.state.pod_reports import termination_message
from finetune_trainer.agent.climb import climb
from finetune_trainer.agent.rungs import LadderRun
from finetune_trainer.agent.serve import progress
from finetune_trainer.ladder.derived import of_rung
from finetune_trainer.ladder.rules import Facts, choose
from finetune_trainer.planning.forecast import Forecast
from finetune_trainer.rundir import RunDir, TrainerReport
from tests.support.made_rungs import Deadly, Killed, Machine, job
from tests.support.small_report import record

METHODS = ("probe", "lora", "full")
FORECAST = Forecast(choice=choose(Facts(chosen=METHODS)), estimates=dict.fromkeys(METHODS, 0.1))


def plan_of(folder: Path, *, attempt: int = 1, **changes: Any) -> RunPlan:
    """As a pod reads it: with every default written out."""
    made = job(folder, **changes)
    identity = JobIdentity(namespace="ml", name="climber", uid=made.metadata.uid)
    plan = RunPlan(job=identity, attempt=attempt, spec=made.spec, token="t", nonce="n")
    return RunPlan.model_validate_json(plan.model_dump_json(by_alias=True, exclude_none=True))


def climbed(plan: RunPlan, machine: Machine) -> tuple[TerminationMessage, list[LadderStatus]]:
    shown: list[LadderStatus] = []

    def run(rung: RunPlan, _: Callable[[], str]) -> TerminationMessage:
        assert (rung.attempt, rung.token, rung.nodes) == (plan.attempt, plan.token, plan.nodes)
        made = job_of(rung)
        _, words = machine.run_one(made, rung=rung.rung, publishes=rung.publishes, trial=rung.trial)
        return words

    words = climb(plan, foreseen=FORECAST, run=run, tell=lambda _: None, show=shown.append)
    return words, shown


def job_of(plan: RunPlan) -> Any:
    from finetune_api.job import FineTuneJob, Metadata

    return FineTuneJob(metadata=Metadata(name=plan.job.name, uid=plan.job.uid), spec=plan.spec)


def test_the_pod_publishes_the_best_and_its_last_message_has_the_ladder(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8, "full": 0.8})
    words, shown = climbed(plan_of(tmp_path), machine)
    assert words.failure_class is None
    assert machine.trained == ["probe", "lora", "full"]
    assert words.artifact is not None
    assert words.artifact.uri.endswith("/out")
    assert words.ladder is not None
    assert (words.ladder.best, words.ladder.stop_reason, words.ladder) == ("lora", "noGain", shown[-1])
    running = [[rung.name for rung in told.rungs if rung.state == "running"] for told in shown]
    assert running == [["probe"], ["lora"], ["full"], []]


def test_without_a_gain_the_job_fails_and_says_what_was_tried(tmp_path: Path) -> None:
    words, _ = climbed(plan_of(tmp_path), Machine({"probe": 0.5, "lora": 0.5, "full": 0.5}))
    assert (words.failure_class, words.reason, words.artifact) == (FailureClass.Guard, Reason.NoGain, None)
    assert words.ladder is not None
    assert words.ladder.best == "base"


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_an_attempt_that_is_killed_after_any_write_is_continued(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, left = Machine({"probe": 0.6, "lora": 0.8, "full": 0.8}), [last]
    whole = LadderRun._open
    monkeypatch.setattr(LadderRun, "_open", lambda self, uri: Deadly(whole(self, uri), left))
    try:
        climbed(plan_of(tmp_path), machine)
    except Killed:
        pass
    else:
        assert left[0] > 0, "it was never killed"
    before, left[0] = costs(tmp_path), -1
    words, _ = climbed(plan_of(tmp_path, attempt=2), machine)
    assert words.failure_class is None
    assert machine.trained == ["probe", "lora", "full"]
    after = costs(tmp_path)
    assert {method: after[method] for method in before} == before, "a committed rung costs nothing again"


def costs(folder: Path) -> dict[str, float]:
    (found,) = (folder / "out" / ".finetune").glob("*/rungs/ladder.json")
    return dict(json.loads(found.read_text())["hours"])


def test_a_failure_ends_the_attempt_with_the_ladder_so_far_and_without_results_of_a_rung(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6}, fails={"lora": Reason.StorageUnavailable})
    words, _ = climbed(plan_of(tmp_path), machine)
    assert (words.reason, words.artifact, words.evaluation) == (Reason.StorageUnavailable, None, None)
    assert words.ladder is not None
    assert [(rung.name, rung.state) for rung in words.ladder.rungs] == [
        ("probe", "done"),
        ("lora", "running"),
        ("full", "planned"),
    ]


@pytest.mark.parametrize(("tokens", "ends"), [(1000, False), (100, True)])
def test_memory_that_runs_out_is_left_to_the_operator_until_a_micro_batch_is_one_row(
    tokens: int, ends: bool, tmp_path: Path
) -> None:
    """The operator halves the micro-batch; what cannot be halved does not fit, and the ladder ends there."""
    machine = Machine({"probe": 0.6, "lora": 0.8}, fails={"full": Reason.OutOfMemory})
    used = ResolvedPlan(micro_batch_tokens=tokens, longest_row=100)
    whole = machine.run_one
    machine.run_one = lambda *given, **named: (  # type: ignore[method-assign,misc]
        given[0],
        whole(*given, **named)[1].model_copy(update={"plan": used}),
    )
    words, _ = climbed(plan_of(tmp_path), machine)
    assert (words.reason is None) is ends
    if ends:
        assert words.ladder is not None
        assert (words.ladder.best, words.ladder.stop_reason) == ("lora", "memory")
    else:
        assert words.failure_class is FailureClass.OutOfMemory


def test_a_rung_that_the_data_does_not_allow_is_refused_before_anything_runs(tmp_path: Path) -> None:
    machine = Machine({})
    words, _ = climbed(plan_of(tmp_path, **{"data.format": "completion"}), machine)
    assert (words.reason, machine.trained) == (Reason.InvalidSpec, [])


def test_every_method_is_a_rung_of_a_plan_with_all_defaults(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    for method in TRAITS:
        assert of_rung(job_of(plan), method).spec.method.type == method


def test_a_forecast_is_the_same_in_json() -> None:
    found = Forecast(
        choice=choose(Facts(rows=20_000, labelled=True, fits={"probe", "qlora"})), estimates={"probe": 0.5}
    )
    assert found.choice.skipped
    again = Forecast.of_json(json.loads(json.dumps(found.to_json())))
    assert again.choice == found.choice
    assert again.estimates == {"probe": 0.5, "qlora": None}


def test_results_of_a_rung_are_not_reported_as_those_of_the_job(tmp_path: Path) -> None:
    plan, run_dir = plan_of(tmp_path), RunDir(tmp_path / "run")
    run_dir.write_report(TrainerReport(attempt=1, phase="saving", evaluation=record().evaluation))
    climbing = LadderStatus(rule="x", rungs=(RungStatus(name="probe", state="running"),))
    told = progress(plan, run_dir, "training", climbing)
    assert (told.evaluation, told.ladder, told.phase) == (None, climbing, "saving")
    over = climbing.model_copy(update={"stop_reason": "topRung"})
    assert progress(plan, run_dir, "training", over).evaluation == record().evaluation


def ladder(rungs: int) -> LadderStatus:
    rung = RungStatus(
        name="lora", state="done", estimate=1.2345678, cost=1.2345678, learning_rate=0.00012345678, score=0.876543212,
        gain=0.123456789, low=0.012345678, high=0.23456789, minimum_detectable=0.0123456789, rows=12345,
        rows_needed=123456, decision="inconclusive", reason="r" * 1024,
    )  # fmt: skip
    named = tuple(rung.model_copy(update={"name": f"{number:0>32}"}) for number in range(rungs))
    return LadderStatus(rule="much data", rule_reason="w" * 1024, rungs=named, best="lora", story="s" * 1024)


@pytest.mark.parametrize("rungs", [3, 8, 16])
def test_a_long_ladder_fits_into_a_termination_message(rungs: int) -> None:
    told = TerminationMessage(reason=Reason.Succeeded, message="m" * 900, ladder=ladder(rungs))
    text = told.encode()
    assert len(text.encode()) <= TERMINATION_LIMIT
    found = termination_message(text)
    assert found is not None
    assert found.ladder is not None
    assert len(found.ladder.rungs) == rungs


@pytest.mark.parametrize("changes", [{"story": "a\u0007b"}, {"spent": "much"}, {"rungs": [{"name": "x"}] * 2}])
def test_a_ladder_that_is_not_one_is_refused(changes: dict[str, Any]) -> None:
    told = {"reason": "Succeeded", "ladder": {"rule": "x", **changes}}
    assert termination_message(json.dumps(told)) is None
