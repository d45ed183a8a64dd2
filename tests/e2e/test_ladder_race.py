"""ladder.learningRates for real: what is published is what the winning rate alone would have given, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from finetune_api.plan import Trial
from finetune_trainer.ladder.race import MARKS
from finetune_trainer.report.record import decode
from tests.support.in_process import climbed, plan_of, rank

pytestmark = pytest.mark.timeout(600)


def spec_of(files: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    corpus = files / "corpus"
    return {
        "model": {"uri": (files / "model").as_uri()},
        "data": {
            "train": [{"uri": (corpus / "heldout.jsonl").as_uri()}],
            "validation": {"uri": (corpus / "train.jsonl").as_uri()},
            "sequenceLength": 128,
        },
        "training": {"maxSteps": 10, "batchSize": 8},
        "output": {"uri": (folder / "output").as_uri()},
        **changes,
    }


def test_the_winner_of_a_race_equals_a_run_with_its_rate(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 0.001 of the default rate nothing is learned, and at 100 times everything is lost."""
    factors = [0.001, 1.0, 100.0]
    ladder = {"rungs": ["lora"], "learningRates": factors}
    raced = spec_of(files, tmp_path / "raced", method={"type": "auto"}, ladder=ladder)
    status = climbed(raced, tmp_path / "raced", monkeypatch)
    said = [line for line in capsys.readouterr().out.splitlines() if "times the default rate" in line]
    legs = [line.split(":")[1].split()[0] for line in said]
    assert (len(legs), legs[:3], legs[-1]) == (6, ["0.001", "1", "100"], "1")
    assert (status.best, status.rungs[-1].decision) == ("lora", "taken"), status.story

    alone = spec_of(files, tmp_path / "alone", method={"type": "lora"})
    plan = plan_of(alone, tmp_path / "alone", monkeypatch)
    rank(plan.model_copy(update={"rung": "lora", "trial": Trial(factor=1.0)}), tmp_path / "alone")
    first, second = (load_file(tmp_path / each / "output" / "adapter_model.safetensors") for each in ("raced", "alone"))
    assert all((first[name] == second[name]).all() for name in first.keys() | second.keys())
    records = [decode((tmp_path / each / "output" / "run.json").read_bytes()) for each in ("raced", "alone")]
    assert status.rungs[-1].learning_rate == records[0].plan.learning_rate == records[1].plan.learning_rate
    assert [point.step for point in records[0].validation] == [point.step for point in records[1].validation]
    assert records[0].steps == 10
    (rung,) = (tmp_path / "raced" / "output" / ".finetune").glob("*/rungs/lora")
    left = (rung / ".finetune").rglob("*")
    left = (file for file in left if file.is_file() and "tensorboard" not in file.parts)
    assert not list(left), "the losers' notes and checkpoints go too"


def test_a_leg_resumes_where_the_one_before_stopped_and_repeats_nothing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(spec_of(files, tmp_path, method={"type": "lora"}), tmp_path, monkeypatch)
    for until in (MARKS[0], MARKS[0], MARKS[1], None):
        rank(plan.model_copy(update={"rung": "lora", "trial": Trial(factor=2.0, until=until)}), tmp_path)
    record = decode((tmp_path / "output" / "run.json").read_bytes())
    assert [(each.first_step, each.last_step) for each in record.attempts] == [(0, 1), (1, 1), (1, 3), (3, 10)]
