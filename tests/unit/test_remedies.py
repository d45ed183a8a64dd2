"""guards.maxAttempts: which runs follow a violated guard, how they run, and what becomes of their artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api import manifest
from finetune_api.classes import FailureClass
from finetune_api.failures import ExitCode, Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.ladder import Price
from finetune_api.measurements import Evaluation, GuardResult, RemedyRun
from finetune_api.plan import JobIdentity, RunPlan
from finetune_trainer.agent.remedies import remedied
from finetune_trainer.agent.verdict import say
from finetune_trainer.cli.main import main
from finetune_trainer.cli.remedy_plan import remedies_json, remedies_text
from finetune_trainer.ladder.remedies import of_step, walk
from finetune_trainer.planning.devices import gpu
from finetune_trainer.planning.remedies import foreseen
from finetune_trainer.planning.table import Planner, Workload
from finetune_trainer.report.card import model_card
from finetune_trainer.report.html import render
from finetune_trainer.store import candidate
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.opening import open_folder
from tests.support.planning_models import LLAMA_8B
from tests.support.small_artifact import adapter, committed
from tests.support.small_report import record

GENERAL = {"data": {"train": [{"uri": "s3://corp/t.jsonl"}], "general": {"uri": "s3://corp/g.txt"}}}
SLICED = {"data": {"train": [{"uri": "s3://corp/t.jsonl"}], "slices": [{"name": "a", "uri": "s3://corp/a.jsonl"}]}}
FORGETTING = {"forgetting": {}, "onViolation": "remedy", "maxAttempts": 3}


def job(output: str = "s3://corp/out", **changes: Any) -> FineTuneJob:
    spec = {"model": {"uri": "hf://org/m"}, **GENERAL, "guards": FORGETTING, "output": {"uri": output}, **changes}
    raw = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "job"}, "spec": spec}
    made = manifest.load(json.dumps(raw))
    return made.model_copy(update={"metadata": made.metadata.model_copy(update={"uid": "u"})})


@pytest.mark.parametrize(
    ("changes", "steps", "skipped"),
    [
        (
            {},
            ["replay", "replay-klToBase", "replay-klToBase-learningRate"],
            {},
        ),
        ({"guards": FORGETTING | {"maxAttempts": 0}}, [], {}),
        ({"guards": FORGETTING | {"maxAttempts": 2}}, ["replay", "replay-klToBase"], {}),
        (
            {"regularization": {"replay": {"fraction": 0.1}}},
            ["klToBase", "klToBase-learningRate"],
            {"replay": "the manifest has regularization.replay"},
        ),
        (
            {"regularization": {"replay": {}, "klToBase": {}}},
            ["learningRate"],
            {
                "replay": "the manifest has regularization.replay",
                "klToBase": "the manifest has regularization.klToBase",
            },
        ),
        (
            {"strategy": {"type": "deepspeed"}},
            ["replay", "replay-learningRate"],
            {"klToBase": "regularization.klToBase is not supported by strategy.type deepspeed"},
        ),
        (
            {**SLICED, "strategy": {"type": "deepspeed"}, "guards": {**FORGETTING, "slices": {}, "forgetting": None}},
            ["learningRate"],
            {
                "replay": "regularization.replay.source self is not supported by strategy.type deepspeed",
                "klToBase": "regularization.klToBase is not supported by strategy.type deepspeed",
            },
        ),
        (
            {"guards": {"minGain": 0.1, "onViolation": "remedy", "maxAttempts": 1}},
            ["learningRate"],
            {"replay": "guards.minGain alone asks for more", "klToBase": "guards.minGain alone asks for more"},
        ),
    ],
    ids=["all", "none", "two", "replay", "both terms", "deepspeed", "no general text under deepspeed", "gain alone"],
)
def test_each_step_adds_to_those_before_it(changes: dict[str, Any], steps: list[str], skipped: dict[str, str]) -> None:
    if "guards" in changes:
        changes["guards"] = {name: value for name, value in changes["guards"].items() if value is not None}
    found = walk(job(**changes).spec)
    assert [step.key for step in found.steps] == steps
    assert {each.name: each.reason for each in found.skipped}.keys() == skipped.keys()
    for each in found.skipped:
        assert skipped[each.name] in each.reason


def test_without_general_text_the_base_model_writes_what_is_replayed() -> None:
    asked = job(**SLICED, guards={"slices": {}, "onViolation": "remedy", "maxAttempts": 1})
    (step,) = walk(asked.spec).steps
    made = of_step(asked, step)
    assert step.settings == "regularization.replay.source self"
    assert made.spec.regularization.replay is not None
    assert made.spec.regularization.replay.source == "self"


def test_a_step_is_the_job_with_its_terms_in_a_folder_of_its_own() -> None:
    asked = job(regularization={"l2sp": {"strength": 3}}, training={"epochs": 2})
    last = walk(asked.spec).steps[-1]
    made = of_step(asked, last)
    assert (made.metadata.uid, made.spec.output.uri) == (
        "u-replay-klToBase-learningRate",
        "s3://corp/out/.finetune/u/remedies/replay-klToBase-learningRate",
    )
    assert set(made.spec.regularization.to_json()) == {"l2sp", "replay", "klToBase"}
    assert (made.spec.guards.on_violation, made.spec.guards.max_attempts) == ("remedy", 0)
    assert (
        made.spec.model_copy(
            update={name: getattr(asked.spec, name) for name in ("regularization", "guards", "given_output")}
        )
        == asked.spec
    )


@dataclass
class Machine:
    """Runs plans without training: by the step's key, how the run ends. What is committed never trains again."""

    folder: Path
    ends: dict[str, TerminationMessage]
    trained: list[str] = field(default_factory=list)
    plans: list[RunPlan] = field(default_factory=list)

    def run(self, plan: RunPlan) -> TerminationMessage:
        key = plan.job.uid.removeprefix("u-")
        self.plans.append(plan)
        self.trained.append(key)
        words = self.ends[key]
        if words.failure_class is None:
            out = Path(plan.spec.output.uri.removeprefix("file://"))
            adapter(out)
            committed(out, record(job=plan.job))
        assert plan.remedy is not None
        if words.reason in (None, Reason.Succeeded, Reason.GuardViolated, Reason.GuardInconclusive):
            outcome = "published" if words.failure_class is None else "violated"
            this = RemedyRun(name=plan.remedy.name, settings=plan.remedy.settings, outcome=outcome)  # type: ignore[arg-type]
            words = words.model_copy(update={"evaluation": Evaluation(remedies=(*plan.remedy.before, this))})
        return words


FIRST = RemedyRun(name="asWritten", outcome="violated", cost=0.5)
VIOLATED = say(Reason.GuardViolated, "guards.forgetting is violated").model_copy(
    update={"evaluation": Evaluation(remedies=(FIRST,))}
)
PASSED = TerminationMessage(reason=Reason.Succeeded)


def walked(
    folder: Path, ends: dict[str, TerminationMessage], first: TerminationMessage = VIOLATED, **changes: Any
) -> tuple[TerminationMessage, Machine]:
    machine = Machine(folder, ends)
    asked = job(output=(folder / "out").as_uri())
    plan = RunPlan(job=JobIdentity(namespace="ml", name="job", uid="u"), spec=asked.spec, **changes)
    told: Callable[[str], None] = lambda _: None  # noqa: E731
    return remedied(plan, first, run=machine.run, tell=told), machine


def test_the_first_run_that_keeps_the_guards_becomes_the_artifact_of_the_job(tmp_path: Path) -> None:
    words, machine = walked(tmp_path, {"replay": VIOLATED, "replay-klToBase": PASSED})
    assert machine.trained == ["replay", "replay-klToBase"]
    assert words.failure_class is None
    assert words.artifact is not None
    assert words.artifact.uri == (tmp_path / "out").as_uri()
    published = read_manifest(open_folder((tmp_path / "out").as_uri(), prefix="output"))
    assert published.run.uid == "u", "the next attempt finds it as its own"
    assert words.evaluation is not None
    assert [(each.name, each.outcome) for each in words.evaluation.remedies] == [
        ("asWritten", "violated"), ("replay", "violated"), ("klToBase", "published"),
    ]  # fmt: skip


def test_only_the_last_step_has_a_lower_rate(tmp_path: Path) -> None:
    last = "replay-klToBase-learningRate"
    _, machine = walked(tmp_path, {"replay": VIOLATED, "replay-klToBase": VIOLATED, last: PASSED})
    assert [plan.trial and plan.trial.factor for plan in machine.plans] == [None, None, 0.3]


def test_a_walk_that_is_over_ends_as_its_last_run_did(tmp_path: Path) -> None:
    ends = dict.fromkeys(("replay", "replay-klToBase", "replay-klToBase-learningRate"), VIOLATED)
    words, machine = walked(tmp_path, ends)
    assert len(machine.trained) == 3
    assert (words.failure_class, words.reason) == (FailureClass.Guard, Reason.GuardViolated)
    assert words.evaluation is not None
    assert len(words.evaluation.remedies) == 4


@pytest.mark.parametrize(
    "first",
    [
        PASSED,
        say(Reason.GuardInconclusive, "too few rows"),
        say(Reason.Interrupted, "stopped"),
        say(Reason.OutOfMemory, ""),
    ],
    ids=["passed", "inconclusive", "interrupted", "out of memory"],
)
def test_only_a_violated_guard_starts_a_walk(tmp_path: Path, first: TerminationMessage) -> None:
    words, machine = walked(tmp_path, {}, first)
    assert words is first
    assert machine.trained == []


def test_a_job_with_other_nodes_does_not_walk(tmp_path: Path) -> None:
    words, machine = walked(tmp_path, {}, nodes=2)
    assert (words, machine.trained) == (VIOLATED, [])


def test_a_step_that_is_interrupted_ends_the_attempt_and_continues_in_the_next_one(tmp_path: Path) -> None:
    words, machine = walked(tmp_path, {"replay": say(Reason.Interrupted, "stopped")})
    assert (words.reason, machine.trained) == (Reason.Interrupted, ["replay"])
    words, machine = walked(tmp_path, {"replay": PASSED})
    assert (words.failure_class, machine.plans[0].job.uid) == (None, "u-replay")


def test_a_step_that_can_not_run_is_noted_and_the_next_one_follows(tmp_path: Path) -> None:
    words, machine = walked(
        tmp_path, {"replay": say(Reason.DataUnreadable, "two documents"), "replay-klToBase": PASSED}
    )
    assert machine.trained == ["replay", "replay-klToBase"]
    before = machine.plans[-1].remedy
    assert before is not None
    assert [(each.name, each.outcome, each.reason) for each in before.before] == [
        ("asWritten", "violated", ""), ("replay", "failed", "DataUnreadable: two documents"),
    ]  # fmt: skip
    assert words.failure_class is None


def test_an_artifact_that_cannot_be_published_starts_no_other_run(tmp_path: Path) -> None:
    adapter(tmp_path / "out")
    committed(tmp_path / "out", record(job=JobIdentity(namespace="ml", name="other", uid="o")))
    words, machine = walked(tmp_path, {"replay": PASSED})
    assert (words.reason, machine.trained) == (Reason.OutputExists, ["replay"])


@pytest.mark.parametrize(
    ("uri", "output", "uid"),
    [
        ("s3://corp/out/.finetune/u/candidate", "s3://corp/out", "u"),
        ("s3://corp/out/.finetune/u/remedies/replay/.finetune/u-replay/candidate", "s3://corp/out", "u"),
        ("s3://corp/a/.finetune/b/out/.finetune/u/candidate/", "s3://corp/a/.finetune/b/out", "u"),
    ],
)
def test_a_candidate_of_any_run_is_promoted_to_the_output_of_the_job(uri: str, output: str, uid: str) -> None:
    assert (candidate.output_of(uri), candidate.job_uid_of(uri)) == (output, uid)


def test_of_several_candidates_one_replaces_another_only_where_a_person_says_so(tmp_path: Path) -> None:
    """All of them belong to the same job, and a candidate that was published is nowhere else."""
    out = tmp_path / "out"
    first = out / ".finetune/u/candidate"
    last = out / ".finetune/u/remedies/replay/.finetune/u-replay/candidate"
    for each, rank in ((first, 8), (last, 16)):
        adapter(each, r=rank)
        committed(each, record(job=JobIdentity(namespace="ml", name="job", uid="u")))
    assert main(["promote", last.as_uri()]) == ExitCode.OK
    published = (out / "manifest.json").read_bytes()
    assert main(["promote", first.as_uri()]) == ExitCode.CONFIG
    assert (out / "manifest.json").read_bytes() == published
    assert (first / "manifest.json").exists()
    assert main(["promote", first.as_uri(), "--overwrite"]) == ExitCode.OK
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 8


def planner(**changes: Any) -> Planner:
    spec = job(resources={"limits": {"nvidia.com/gpu": 1}}, **changes).spec
    return Planner(spec=spec, shape=LLAMA_8B, device=gpu("H100"), workload=Workload(rows=10_000, tokens=1_000_000))


def test_a_plan_reserves_hours_for_every_run() -> None:
    found = foreseen(planner())
    assert found is not None
    assert [each.name for each in found.runs] == ["asWritten", "replay", "klToBase", "learningRate"]
    hours = [each.hours or 0.0 for each in found.runs]
    assert 0 < hours[0] < hours[1] < hours[2], "replayed rows and the base model's pass cost time"
    assert hours[3] == hours[2]
    assert found.hours == sum(hours)
    told = remedies_json(found, Price(per_hour=2.0, currency="EUR"))
    assert told["cost"] == 2 * sum(hours)
    assert "up to 4 runs, at most" in remedies_text(found, None)


def test_a_plan_without_the_number_of_rows_says_that_hours_are_unknown() -> None:
    made = planner()
    found = foreseen(Planner(spec=made.spec, shape=made.shape, device=made.device))
    assert found is not None
    assert found.hours is None
    assert "an unknown number of GPU hours" in remedies_text(found, None)


def test_a_plan_of_a_job_without_attempts_says_nothing() -> None:
    assert foreseen(planner(guards=FORGETTING | {"maxAttempts": 0})) is None


def test_report_and_card_have_each_run_with_its_guards_and_its_costs() -> None:
    guard = GuardResult(name="forgetting", bound=0.05, value=0.21, low=0.18, high=0.24, verdict="violated").told()
    runs = (
        RemedyRun(name="asWritten", outcome="violated", reason=guard, cost=0.5),
        RemedyRun(name="replay", settings="regularization.replay", outcome="published", cost=0.75),
    )
    made = record(evaluation=Evaluation(remedies=runs))
    page, card = render(made), model_card(made)
    for words in ("violated", "published", "regularization.replay", "+0.21 [+0.18, +0.24]"):
        assert words in page
        assert words in card
    assert "Remedies" not in render(record())
