"""`finetune run` with method auto for real: two ladders on a tiny model that choose differently, and say why."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from finetune_api.failures import ExitCode
from finetune_api.job import FineTuneJob
from finetune_trainer.agent.local import Gang, local_plan
from finetune_trainer.report.record import decode
from finetune_trainer.transfer import records
from tests.support.in_process import climbed
from tests.support.local_runs import Json, Workspace
from tests.support.tiny_model import tiny_model

pytestmark = pytest.mark.timeout(600)


def rows(count: int, *, start: int, signal: bool) -> str:
    """The label is the text's first letter, or nothing in the text."""
    chosen = random.Random(start)
    lines = []
    for number in range(start, start + count):
        label = chosen.choice(["no", "yes"])
        first = ("a" if label == "no" else "z") if signal else "m"
        text = first + "".join(chosen.choice("bcdefgh") for _ in range(6)) + str(number)
        lines.append(json.dumps({"text": text, "label": label}))
    return "\n".join(lines) + "\n"


def manifest(workspace: Workspace, *, signal: bool, rungs: list[str]) -> Json:
    folder = workspace.folder / "rows"
    folder.mkdir()
    sizes = {"train": 100, "validation": 200, "test": 60}
    for place, (name, count) in enumerate(sizes.items()):
        (folder / f"{name}.jsonl").write_text(rows(count, start=10_000 * place, signal=signal))
    uris = {name: (folder / f"{name}.jsonl").as_uri() for name in sizes}
    data = {
        "train": [{"uri": uris["train"]}], "validation": {"uri": uris["validation"]}, "test": {"uri": uris["test"]},
        "format": "classification", "sequenceLength": 128,
    }  # fmt: skip
    return workspace.manifest(
        method={"type": "auto"}, ladder={"minGain": 0.05, "rungs": rungs}, data=data, nodes=1,
        training={"maxSteps": 4, "batchSize": 16},
    )  # fmt: skip


def test_a_probe_that_suffices_is_published_and_lora_is_not(workspace: Workspace) -> None:
    asked = manifest(workspace, signal=True, rungs=["probe", "lora"])
    assert workspace.run(asked) == ExitCode.OK, workspace.story()
    status = workspace.job().status
    assert status.ladder is not None
    assert status.ladder.best == "probe"
    assert status.ladder.rungs[0].decision == "taken"
    assert status.ladder.stop_reason in ("noGain", "inconclusive")
    assert all(rung.cost for rung in status.ladder.rungs)
    output = workspace.folder / "output" / "tiny"
    assert json.loads((output / "manifest.json").read_text())["ladder"]["rung"] == "probe"
    record = decode((output / "run.json").read_text())
    assert {each.kind for each in record.evaluation.data} == {"validation", "test"}
    assert record.ladder == status.ladder
    assert "<h2>Ladder</h2>" in (output / "report.html").read_text()
    (uid,) = (output / ".finetune").iterdir()
    for rung in ("probe", "lora"):
        found = decode((uid / "rungs" / rung / "run.json").read_text())
        assert {each.kind for each in found.evaluation.data} == {"validation"}, "a rung must not read the test rows"


def test_without_a_signal_nothing_is_published_and_the_reason_is_told(workspace: Workspace) -> None:
    asked = manifest(workspace, signal=False, rungs=["probe"])
    assert workspace.run(asked) == ExitCode.GUARD, workspace.story()
    assert not (workspace.folder / "output" / "tiny" / "manifest.json").exists()
    assert "no rung is better than the base model" in workspace.said()
    assert Path(workspace.home.run("tiny") / "rungs" / "probe").is_dir()


def test_two_nodes_publish_lora_from_the_checkpoint_of_its_rung(workspace: Workspace) -> None:
    """As in pods: the agent of node 0 decides, and that of node 1 follows. Rows without labels, compared by loss. The
    published weights are those that were selected, and no step is made again."""
    folder, chosen = workspace.folder / "rows", random.Random(5)
    folder.mkdir()
    for name, count in {"train": 64, "validation": 120, "test": 40}.items():
        words = ["".join(chosen.choice("abcdef") for _ in range(9)) for _ in range(count)]
        lines = [json.dumps({"prompt": f"backwards {name} {word}: ", "completion": word[::-1]}) for word in words]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    uris = {name: (folder / f"{name}.jsonl").as_uri() for name in ("train", "validation", "test")}
    data = {
        "train": [{"uri": uris["train"]}], "validation": {"uri": uris["validation"]}, "test": {"uri": uris["test"]},
        "sequenceLength": 128,
    }  # fmt: skip
    asked = workspace.manifest(
        method={"type": "auto"}, ladder={"minGain": 0.05, "rungs": ["lora"]}, data=data, nodes=2,
        training={"maxSteps": 6, "batchSize": 16},
    )  # fmt: skip
    job = FineTuneJob.model_validate_json(json.dumps(asked))
    gang = Gang(plan=local_plan(job, uid="two-nodes", attempt=1), home=workspace.home)
    gang.start()
    try:
        while (ended := gang.poll()) is None:
            time.sleep(0.1)
    finally:
        gang.kill()
    said = [workspace.home.log("tiny", node=node, attempt=1).read_text() for node in range(2)]
    assert ended.failure_class is None, "".join(said)
    turns = [f"turn {number} of the ladder: {what}" for number, what in enumerate(("lora", "publishing lora"), 1)]
    assert all(turn in said[1] for turn in turns)
    assert not any(turn in said[0] for turn in turns), "node 0 follows nobody"
    assert ended.ladder is not None
    assert (ended.ladder.best, ended.ladder.stop_reason, ended.ladder.metric) == ("lora", "topRung", "loss")
    shown, trained = ended.ladder.rungs
    assert (shown.name, shown.decision, shown.rows) == ("fewShot", None, trained.rows)
    assert shown.score is not None
    output = workspace.folder / "output" / "tiny"
    (uid,) = (output / ".finetune").iterdir()
    rung = uid / "rungs" / "lora"
    assert (output / "adapter_model.safetensors").read_bytes() == (rung / "adapter_model.safetensors").read_bytes()
    record = decode((output / "run.json").read_text())
    kinds = {each.kind: each for each in record.evaluation.data}
    assert set(kinds) == {"validation", "test"}
    assert kinds["test"].verdict == "better"
    assert [(each.first_step, each.last_step) for each in record.attempts] == [(0, 6), (6, 6)]
    assert record.steps == 6
    assert [(each.nodes, each.world_size) for each in record.attempts] == [(2, 2), (2, 2)]
    assert not list((rung / ".finetune").rglob("*.json")), "its checkpoints are of no more use"


def test_few_rows_decide_by_cross_fitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are real: each training row is measured once, by the run that did not train on it."""
    tiny_model(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text(rows(60, start=0, signal=True))
    spec = {
        "model": {"uri": (tmp_path / "model").as_uri()}, "method": {"type": "auto"},
        "data": {"train": [{"uri": (tmp_path / "train.jsonl").as_uri()}], "format": "classification"},
        "ladder": {"rungs": ["probe"], "folds": 3, "fewShot": 2}, "output": {"uri": (tmp_path / "out").as_uri()},
    }  # fmt: skip
    ladder = climbed(spec, tmp_path, monkeypatch)
    assert [(rung.name, rung.rows) for rung in ladder.rungs] == [("fewShot", 57), ("probe", 57)]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["ladder"]["tried"] == ["probe"]
    assert ladder.best == "probe", "of 60 rows, 5 % are validation rows"
    (folds,) = (tmp_path / "out" / ".finetune").glob("*/rungs/probe/folds/3")
    found = [decode((folds / str(index) / "run.json").read_text()) for index in range(3)]
    assert [each.data.statistics.splits["train"].rows for each in found] == [38, 38, 38]
    models = [
        records.decode((folds / str(index) / "evaluation/validation.parquet").read_bytes()).models for index in range(3)
    ]
    measured = [set(each["tuned"].row) for each in models]
    assert [set(each["fewShot"].row) for each in models] == measured
    assert all((each["fewShot"].nats != each["base"].nats).all() for each in models), "examples change what it reads"
    assert [len(each) for each in measured] == [19, 19, 19]
    assert len(set.union(*measured)) == 57
