"""Jobs that train again because a guard is violated at every scale: a lower rate saves one, and nothing the other."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.failures import ExitCode, Reason, TerminationMessage
from finetune_api.plan import RunPlan
from finetune_trainer.agent.remedies import remedied
from finetune_trainer.cli.main import main
from finetune_trainer.report.record import RunRecord, decode
from finetune_trainer.rundir import RunDir
from tests.support.in_process import plan_of, rank
from tests.support.local_runs import Workspace, model_and_corpus

pytestmark = pytest.mark.timeout(600)

DIGITS = ["".join(random.Random(seed).choices("0123456789", k=100)) for seed in range(160)]
"""General text, of which the training rows have no letter."""


def reader_of_digits(folder: Path) -> Path:
    """A model and a corpus; the model knows digits, about 3.3 bits each."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model_and_corpus(folder)
    model, tokenizer = (each.from_pretrained(folder / "model") for each in (LlamaForCausalLM, AutoTokenizer))
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in DIGITS[:64]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        rows = ids[step * 16 % 64 :][:16]
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "model")
    return folder


class Pod:
    """Runs each plan in this process. The first try of the second run is interrupted after step 5."""

    def __init__(self, folder: Path, plan: RunPlan) -> None:
        self.folder, self.plan = folder, plan
        self.steps: list[tuple[str, int]] = []

    def attempt(self) -> TerminationMessage:
        return remedied(self.plan, self.run(self.plan), run=self.run, tell=print)

    def run(self, plan: RunPlan) -> TerminationMessage:
        of, beat, seen = plan.remedy.name if plan.remedy else "asWritten", RunDir.beat, self.steps
        interrupts = of != "asWritten" and all(name != of for name, _ in seen)

        def watched(run_dir: RunDir, number: int, phase: str, step: int) -> None:
            beat(run_dir, number, phase, step)
            if phase == "training" and step and (of, step) not in seen:
                seen.append((of, step))
                if interrupts and step == 5:
                    run_dir.request_stop("the test")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(RunDir, "beat", watched)
            words = rank(plan, self.folder)
        report = RunDir(self.folder / "run").report()
        assert report is not None
        return words.model_copy(update={"evaluation": report.evaluation, "candidate": report.candidate})


def record_in(folder: Path) -> RunRecord:
    return decode((folder / "run.json").read_bytes())


def test_a_lower_rate_keeps_what_the_model_knew_and_nothing_is_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 0.03 the model forgets digits by several bits per byte at each scale; at 0.009 by less than 0.3."""
    files = reader_of_digits(tmp_path / "files")
    workspace = Workspace(folder=tmp_path, files=files)
    general = tmp_path / "general.jsonl"
    general.write_text("\n".join(json.dumps({"text": text}) for text in DIGITS))
    spec: dict[str, Any] = workspace.manifest(nodes=1)["spec"]
    spec["data"] |= {"general": {"uri": general.as_uri()}}
    spec["training"] |= {"learningRate": 0.03}
    spec["regularization"] = {"replay": {"fraction": 0.01}, "klToBase": {"beta": 0.0001}}  # too little to help
    spec["guards"] = {"forgetting": {"maxBitsPerByteIncrease": 0.3}, "onViolation": "remedy", "maxAttempts": 1}
    pod = Pod(tmp_path, plan_of(spec, tmp_path, monkeypatch))
    assert pod.attempt().reason is Reason.Interrupted
    output = tmp_path / "output" / "tiny"
    kept = record_in(output / ".finetune" / "u-1" / "candidate")
    words = pod.attempt()
    assert words.failure_class is None, words.message
    assert words.artifact is not None
    assert words.artifact.uri == output.as_uri()
    assert pod.steps == [(name, step) for name in ("asWritten", "learningRate") for step in range(1, 13)]
    record = record_in(output)
    before, after = record.evaluation.remedies
    assert record_in(output / ".finetune" / "u-1" / "candidate") == kept
    assert (before.name, before.outcome) == ("asWritten", "violated")
    assert before.reason.startswith("forgetting is violated: +")
    assert (after.name, after.outcome) == ("learningRate", "published")
    assert [attempt.first_step for attempt in record.attempts] == [0, 5]
    assert record.plan.learning_rate == pytest.approx(0.009)
    assert json.loads((output / "manifest.json").read_text())["run"]["uid"] == "u-1"
    assert "0.3 times the learning rate" in (output / "README.md").read_text()


def test_a_gain_that_is_out_of_reach_ends_with_the_candidate_of_the_last_run(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by `finetune run`: in one pod, one run after the other."""
    guards = {"minGain": 50, "onViolation": "remedy", "maxAttempts": 1}
    test = {"uri": (workspace.files / "corpus" / "train.jsonl").as_uri()}  # enough rows for an interval
    data = workspace.manifest()["spec"]["data"] | {"test": test, "allowDuplicates": True}
    asked = workspace.manifest(nodes=1, guards=guards, data=data, training={"maxSteps": 1, "batchSize": 16})
    assert workspace.run(asked) == ExitCode.GUARD, workspace.story()
    status = workspace.job().status
    assert status.evaluation is not None
    assert [(run.name, run.outcome) for run in status.evaluation.remedies] == [
        ("asWritten", "violated"), ("learningRate", "violated"),
    ]  # fmt: skip
    assert "run learningRate (0.3 times the learning rate): violated" in workspace.said()
    assert status.candidate is not None
    assert "/remedies/learningRate/" in status.candidate.uri
    output = workspace.folder / "output" / "tiny"
    assert not (output / "manifest.json").exists()
    assert main(["promote", status.candidate.uri]) == ExitCode.OK
    assert output.as_uri() in capsys.readouterr().out
    assert json.loads((output / "manifest.json").read_text())["run"]["uid"] == workspace.job().metadata.uid
