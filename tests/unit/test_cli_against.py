"""`finetune analyze --against`: artifacts whose changed layers are known, from files to recommendation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.plan import JobIdentity
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.main import main
from finetune_trainer.methods.base import Base
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.single import Single
from finetune_trainer.report.record import RECORD_FILE, RunRecord
from finetune_trainer.store.artifact import commit_artifact
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.model import load_network
from tests.support.printed_json import conforms
from tests.support.tiny_model import tiny_model
from tests.support.tokenizers import write_jsonl
from tests.support.training import disturb

WORDS = ("river", "stone", "window", "paper", "winter", "garden", "letter", "silver", "morning", "bridge")
LAYERS = 4


def _texts(count: int, *, seed: int) -> list[dict[str, object]]:
    chosen = random.Random(seed)
    return [{"text": " ".join(chosen.choices(WORDS, k=12))} for _ in range(count)]


def _job(folder: Path, method: dict[str, Any], *, rows: int = 40) -> Path:
    tiny_model(folder / "model", layers=LAYERS, hidden=32)
    spec = {
        "model": {"uri": f"file://{folder}/model"},
        "data": {
            "train": [{"uri": write_jsonl(folder / "train.jsonl", *_texts(8, seed=1))}],
            "test": {"uri": write_jsonl(folder / "test.jsonl", *_texts(rows, seed=2))},
            "general": {"uri": write_jsonl(folder / "general.jsonl", *_texts(rows, seed=3))},
            "sequenceLength": 128,
        },
        "method": method,
        "output": {"uri": f"file://{folder}/output"},
    }
    file = folder / "job.json"
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "moved"}, "spec": spec}
    file.write_text(json.dumps(job))
    return file


def _artifact(folder: Path, file: Path, *, by: float) -> str:
    """In the manifest's output, of a run that moved all that the method trains `by` so much."""
    spec = FineTuneJobSpec.model_validate(json.loads(file.read_text())["spec"], strict=False)
    network, stored = load_network(
        folder / "model", dtype=torch.float32, strategy=Single(), device=torch.device("cpu"), frozen=True
    )
    attached = method_of(spec.method).attach(network, seed=1, base=Base("tiny", stored, folder=folder / "model"))
    if by:
        disturb(attached, by=by)
    attached.settle()
    made = folder / "made"
    made.mkdir()
    attached.export(made)
    run = JobIdentity(namespace="default", name="moved", uid="u-1")
    record = RunRecord(job=run, spec=spec).encode().encode()
    files: dict[str, bytes | Path] = {RECORD_FILE: record, **{path.name: path for path in made.iterdir()}}
    commit_artifact(open_folder(spec.output.uri, prefix=""), files, run=run, kind=attached.kind, overwrite=False)
    return str(folder / "output")


def _told(folder: Path, method: dict[str, Any], capsys: pytest.CaptureFixture[str], *, by: float) -> dict[str, Any]:
    file = _job(folder, method)
    against = _artifact(folder, file, by=by)
    capsys.readouterr()
    given = ["analyze", str(file), "--home", str(folder / "home"), "--against", against, "--tokens", "1100"]
    assert main([*given, "-o", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    conforms("analyze-against", found)
    assert [each["name"] for each in found["data"]] == ["test", "general"]
    return found


def test_an_adapter_of_the_last_two_layers_changes_these_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"type": "lora", "lora": {"rank": 4, "layers": 2}}
    found = _told(tmp_path, method, capsys, by=0.3)
    for each in found["data"]:
        assert each["changedFrom"] == 3
        assert each["tokens"] >= 1024
        ckas = [layer["cka"] for layer in each["layers"]]
        assert ckas[:3] == [1, 1, 1]
        assert max(ckas[3:]) < 0.99
        assert all(layer["nullCka"] < 0.9 for layer in each["layers"])
        assert {"svcca", "pwcca", "nullSvcca", "nullPwcca"} < set(each["layers"][0])
    advice = {each["set"]: each["because"] for each in found["recommendations"]}
    assert "method: {type: lora, lora: {layers: 2}}" in advice
    assert (
        "the states of general text changed too" in advice["guards.forgetting, and regularization.replay or klToBase"]
    )


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_an_adapter_that_learned_nothing_leaves_every_layer_as_it_is_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    found = _told(tmp_path, {"type": method}, capsys, by=0)
    for each in found["data"]:
        assert each["changedFrom"] is None
        assert [layer["cka"] for layer in each["layers"]] == [1] * (LAYERS + 1)
    assert "a higher training.learningRate" in found["recommendations"][0]["set"]


def test_a_model_that_was_tuned_as_a_whole_is_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _told(tmp_path, {"type": "full"}, capsys, by=0.3)
    assert found["data"][0]["changedFrom"] is not None


def test_the_table_has_a_line_for_each_layer_and_what_the_columns_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _job(tmp_path, {"type": "lora"})
    against = _artifact(tmp_path, file, by=0)
    capsys.readouterr()
    assert main(["analyze", str(file), "--home", str(tmp_path / "home"), "--against", against, "--tokens", "1100",
                 "--save", str(tmp_path / "page.html")]) == 0  # fmt: skip
    assert (tmp_path / "page.html").read_text().count("<svg") == 2
    told = capsys.readouterr().out.splitlines()
    [head, *_] = [line.split() for line in told if line.strip().startswith("layer")]
    assert head == ["layer", "CKA", "±", "error", "null", "raw", "CKA", "SVCCA", "null", "PWCCA", "null"]
    assert len([line for line in told if line.strip()[:1].isdigit()]) == 2 * (LAYERS + 1)
    assert told.count("  no layer changed") == 2


def _refusal(folder: Path, method: dict[str, Any], capsys: pytest.CaptureFixture[str], *, rows: int = 40) -> str:
    file = _job(folder, method, rows=rows)
    against = _artifact(folder, file, by=0)
    assert main(["analyze", str(file), "--home", str(folder / "home"), "--against", against]) != 0
    return capsys.readouterr().err


def test_what_cannot_be_compared_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt").mkdir()
    told = _refusal(tmp_path / "prompt", {"type": "prompt", "prompt": {"virtualTokens": 4}}, capsys)
    assert "method prompt puts a soft prompt before the model's input" in told
    assert "finetune compare" in told
    (tmp_path / "few").mkdir()
    told = " ".join(_refusal(tmp_path / "few", {"type": "lora"}, capsys, rows=4).split())
    assert "test is not compared: it has" in told
    assert "at least 1,024 tokens" in told


def test_an_artifact_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _job(tmp_path, {"type": "lora"})
    against = _artifact(tmp_path, file, by=0)
    tiny_model(tmp_path / "model", layers=LAYERS, hidden=48)
    assert main(["analyze", str(file), "--home", str(tmp_path / "home"), "--against", against]) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert "the artifact does not fit the model" in told
    assert "Set model.uri to the model that the artifact was trained from." in told


def test_a_folder_without_an_artifact_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _job(tmp_path, {"type": "lora"})
    (tmp_path / "empty").mkdir()
    assert main(["analyze", str(file), "--home", str(tmp_path), "--against", str(tmp_path / "empty")]) != 0
    assert "nothing is committed in file://" in " ".join(capsys.readouterr().err.split())
