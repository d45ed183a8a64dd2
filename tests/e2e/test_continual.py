"""Three tasks in sequence: each job starts from the artifact before it, and measures the tasks before it again."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune_api.failures import FinetuneError
from finetune_api.measurements import Measurement
from finetune_trainer.data.earlier_rows import from_file
from finetune_trainer.report.record import RunRecord, decode
from finetune_trainer.store.folder import digest_of
from finetune_trainer.store.manifest import Manifest
from finetune_trainer.store.sequence import Sequence
from finetune_trainer.train.reporter import Reporter
from finetune_trainer.train.state import State, Step
from finetune_trainer.transfer.records import decode as records_of
from tests.support.task_sequence import output, task, trained
from tests.support.tiny_model import tiny_model

JOBS = ("one", "two", "three")
FULL = {"type": "full"}
EARLIER: dict[str, Any] = {"replay": {"fraction": 0.5, "source": "earlier"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks by LoRA, a fourth job with more data for the third, and the second task alone on the base model."""
    folder = tmp_path_factory.mktemp("tasks")
    tiny_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        for seed, (name, before) in enumerate(zip(JOBS, ("", *JOBS), strict=False)):
            trained(folder, name, task(folder, name, seed=seed, after=before), patch)
        more = task(folder, "more", seed=9, after="three")
        del more["data"]["test"]
        trained(folder, "more", more, patch)
        alone = task(folder, "alone", after="")
        alone["data"] = task(folder, "two", seed=1)["data"]
        trained(folder, "alone", alone, patch)
    return folder


def manifest(root: Path, name: str) -> Manifest:
    return Manifest.model_validate_json((output(root, name) / "manifest.json").read_bytes())


def sequence(root: Path, name: str) -> Sequence:
    found = manifest(root, name).continual
    assert found is not None
    return found


def record(root: Path, name: str) -> RunRecord:
    return decode((output(root, name) / "run.json").read_bytes())


def by_loss(root: Path, name: str) -> dict[tuple[str, str], Measurement]:
    return {(each.kind, each.name): each for each in record(root, name).measurements if each.metric == "loss"}


def test_the_manifest_of_the_last_task_has_the_whole_matrix(root: Path) -> None:
    assert manifest(root, "one").continual is None, "a job that continues from nothing writes what it always wrote"
    found = sequence(root, "three")
    assert found.names == JOBS
    known = [[each is not None for each in row] for row in found.scores]
    assert known == [[True, True, False], [True, True, True], [True, True, True]]
    assert [each is not None for each in found.base] == [False, True, True]
    assert [each.artifact for each in found.tasks] == [output(root, name).as_uri() for name in JOBS]


def test_each_row_is_what_the_job_of_its_task_measured(root: Path) -> None:
    found = sequence(root, "three")
    for at, name in enumerate(JOBS):
        measured = by_loss(root, name)
        own = found.scores[at][at]
        assert own is not None
        assert own.loss == measured["test", "test"].tuned
        for earlier in range(at):
            again = found.scores[at][earlier]
            assert again is not None
            assert again.loss == pytest.approx(measured["task", JOBS[earlier]].tuned, abs=1e-9)


def test_the_base_of_a_job_is_the_model_of_the_artifact_before_it(root: Path) -> None:
    for before, name in pairwise(JOBS):
        earlier, here = by_loss(root, before), by_loss(root, name)
        assert here["task", before].base == pytest.approx(earlier["test", "test"].tuned, abs=1e-5)
        assert here["test", "test"].base == pytest.approx(_at(root, name, -2, -1), abs=1e-9)


def _at(root: Path, name: str, row: int, column: int) -> float:
    scores = sequence(root, name).scores[row][column]
    assert scores is not None
    return scores.loss


def test_forward_transfer_is_measured_from_the_original_base_model(root: Path) -> None:
    """Which the second task alone begins with."""
    original = sequence(root, "two").base[1]
    assert original is not None
    assert original.loss == pytest.approx(by_loss(root, "alone")["test", "test"].base, abs=1e-6)
    assert original.loss != pytest.approx(by_loss(root, "two")["test", "test"].base, abs=1e-3)


def test_status_has_the_numbers_of_the_matrix(root: Path) -> None:
    found = record(root, "three").evaluation
    assert found.continual == sequence(root, "three").judged()
    assert found.continual is not None
    assert found.continual.tasks == 3
    assert None not in (found.continual.bwt, found.continual.fwt, found.continual.forgetting)
    tasks = [each for each in found.data if each.kind == "task"]
    assert [each.name for each in tasks] == ["one", "two"]
    assert all(each.low is not None and each.verdict is not None for each in tasks)


def test_the_records_of_earlier_tasks_are_in_the_artifact(root: Path) -> None:
    data = records_of((output(root, "three") / "evaluation" / "task" / "one.parquet").read_bytes())
    own = records_of((output(root, "one") / "evaluation" / "test.parquet").read_bytes())
    assert (data.kind, data.name, set(data.models)) == ("task", "one", {"base", "tuned"})
    assert sorted(data.models["base"].row) == sorted(own.models["tuned"].row)


def test_each_manifest_names_the_training_data_of_all_jobs_before_it(root: Path) -> None:
    known = manifest(root, "more").trained_on
    assert known is not None
    assert known.names == (*JOBS, "more")
    for at, name in enumerate(known.names):
        file = root / "data" / name / "train.jsonl"
        assert known.tasks[at].files == {file.as_uri(): digest_of(file).sha256}
        assert (known.tasks[at].format, known.tasks[at].sources[0].rows) == ("completion", 24)
    measured = [from_file((output(root, name) / "evaluation" / "measured.bin").read_bytes()) for name in known.names]
    assert [len(each) for each in measured] == [25, 50, 75, 76], "24 test rows and one of validation in each job"
    assert all(set(one.tolist()) < set(other.tolist()) for one, other in pairwise(measured))


def test_plain_peft_on_the_original_base_is_the_model_of_the_last_task(root: Path) -> None:
    """One adapter, of the ranks of all tasks, whose loss on the rows of the first task is the one in the matrix."""
    from peft import PeftModel

    from finetune_trainer.data.held_out import load_held_out

    folder = output(root, "three")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 12
    network: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / "model"), folder).eval()
    test = sequence(root, "three").tasks[0].test
    rows = load_held_out(test, tokenizer_path=root / "model", cache=root / "cache").corpus
    nats = 0.0
    for number in range(len(rows)):
        tokens, trained_ = rows.row(number)
        logits = network(input_ids=torch.tensor(tokens[None].astype("int64"))).logits[0, :-1]
        of_targets = torch.nn.functional.cross_entropy(
            logits, torch.tensor(tokens[1:].astype("int64")), reduction="none"
        )
        nats += float(of_targets[torch.tensor(trained_[1:])].sum())
    assert nats / rows.trained_tokens == pytest.approx(_at(root, "three", 2, 0), abs=1e-4)


def test_more_data_without_a_test_is_no_task_of_its_own(root: Path) -> None:
    assert sequence(root, "more") == sequence(root, "three")
    found = record(root, "more").evaluation
    assert found.continual is None
    assert [each.name for each in found.data if each.kind == "task"] == list(JOBS)


def test_full_continues_from_a_whole_model_and_lora_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = task(root, "whole", method=FULL, training={"maxSteps": 2, "batchSize": 8, "learningRate": 0.001})
    trained(root, "whole", whole, monkeypatch)
    again = task(root, "again", seed=1, after="whole", method=FULL, training=whole["training"])
    trained(root, "again", again, monkeypatch)
    adapter = task(root, "adapter", seed=2, after="again")
    trained(root, "adapter", adapter, monkeypatch)
    found = sequence(root, "adapter")
    assert found.names == ("whole", "again", "adapter")
    assert found.judged().fwt is None, "the original base model was not loaded"
    for before, name in (("whole", "again"), ("again", "adapter")):
        assert by_loss(root, name)["task", before].base == pytest.approx(
            by_loss(root, before)["test", "test"].tuned, abs=1e-5
        )
    config = json.loads((output(root, "adapter") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(output(root, "again"))
    assert record(root, "adapter").provenance.base_model == output(root, "again").as_uri()


def test_full_continues_from_what_was_merged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = task(root, "first")
    first["output"]["merged"] = True
    trained(root, "first", first, monkeypatch)
    short = {"maxSteps": 1, "batchSize": 8, "learningRate": 0.0001}
    trained(root, "second", task(root, "second", seed=1, after="first", method=FULL, training=short), monkeypatch)
    assert by_loss(root, "second")["task", "first"].base == pytest.approx(
        by_loss(root, "first")["test", "test"].tuned, abs=1e-4
    )


def test_a_stopped_job_continues_from_where_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with the matrix of the job that was not stopped, and with the same rows of two earlier tasks."""
    changes: dict[str, Any] = {"checkpoint": {"every": 2}, "regularization": EARLIER}
    spec = task(root, "unbroken", seed=1, after="two", **changes)
    trained(root, "unbroken", spec, monkeypatch)
    again = task(root, "stopped", seed=1, after="two", **changes) | {"data": spec["data"]}
    plain = Reporter.step

    def step(reporter: Reporter, state: State, done: Step) -> None:
        plain(reporter, state, done)
        if state.step == 3:
            reporter.run_dir.request_stop("enough")

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", step)
        with pytest.raises(FinetuneError, match="stopped on request after step"):
            trained(root, "stopped", again, monkeypatch)
    trained(root, "stopped", again, monkeypatch)
    weights = [(output(root, name) / "adapter_model.safetensors").read_bytes() for name in ("unbroken", "stopped")]
    assert weights[0] == weights[1]
    one, other = sequence(root, "unbroken"), sequence(root, "stopped")
    assert (one.scores, one.base) == (other.scores, other.base)
    assert len(record(root, "stopped").attempts) == 2
    statistics = record(root, "stopped").data.statistics
    assert statistics is not None
    assert [(each.name, each.drawn, each.documents) for each in statistics.replayed] == [
        ("one", 23, 23),
        ("two", 23, 23),
    ]
    assert all(point.regularization for point in record(root, "stopped").curve)
    page = (output(root, "stopped") / "report.html").read_text()
    assert "task two: 23 of 23 training rows" in page
    assert "50 % of the rows of a step, from the training rows of earlier tasks" in page


def test_the_adapter_of_a_job_that_continues_is_switched_with_the_earlier_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = task(root, "switched", seed=5, after="one")
    spec["output"]["switchTest"] = [output(root, "one").as_uri()]
    found = trained(root, "switched", spec, monkeypatch).switch_test
    assert found is not None
    assert (found.verdict, found.adapters, found.largest_difference) == ("passed", 2, 0.0), found.reason
