"""`train.main` with other methods, data and strategies: all weights, classes, tables, shards, 4 bits, DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune_api.failures import ExitCode
from finetune_trainer.report.record import decode
from finetune_trainer.store.artifact import verify
from finetune_trainer.store.opening import open_folder
from tests.support.scored import scored
from tests.support.train_runs import Gang, difference, inputs_in, loss_on_test, spec_of, succeeded

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs_in(tmp_path_factory.mktemp("inputs"))


def test_full_fine_tuning_commits_a_model_that_transformers_loads(inputs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    spec = spec_of(inputs, tmp_path / "out", method={"type": "full"})
    _, words = succeeded(tmp_path / "run", spec)
    assert words.artifact is not None
    assert words.artifact.kind == "model"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loss_on_test(loaded, inputs, tmp_path / "out", tmp_path) == pytest.approx(
        scored(words.evaluation)[1], abs=1e-5
    )


def test_classification_is_scored_by_accuracy(inputs: Path, tmp_path: Path) -> None:
    kinds = (("aaa", "up"), ("zzz", "down"))
    rows = [{"text": f"{word} {i}", "label": label} for i in range(24) for word, label in kinds]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    rows_uri = {"uri": f"file://{tmp_path}/rows.jsonl"}
    data = {"train": [rows_uri], "test": rows_uri, "validation": rows_uri, "allowDuplicates": True}
    training = {"epochs": 12, "batchSize": 8, "learningRate": 0.005}
    guards = {"calibration": {"maxIncrease": 0.5}}
    spec = spec_of(inputs, tmp_path / "out", data=data, training=training, method={"type": "full"}, guards=guards)
    _, words = succeeded(tmp_path / "run", spec)
    assert scored(words.evaluation, metric="accuracy")[1] == 1.0
    assert words.evaluation is not None
    found = words.evaluation.calibration
    assert found is not None
    assert (found.name, found.rows) == ("test", 48)
    assert found.tuned.nll < found.base.nll
    assert [(guard.name, guard.verdict) for guard in words.evaluation.guards] == [("calibration", "passed")]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["temperature"] == found.temperature is not None
    assert "Calibration" in (tmp_path / "out" / "report.html").read_text()


def test_weighted_and_augmented_tables_resume_to_the_bit_and_are_told_in_the_artifact(
    inputs: Path, tmp_path: Path
) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [json.loads(line) for line in (inputs / "data" / "train.jsonl").read_text().splitlines()]
    (tmp_path / "shards").mkdir()
    for number in range(3):
        parquet.write_table(pyarrow.Table.from_pylist(rows[number:48:3]), tmp_path / "shards" / f"{number}.parquet")
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[48:]))
    data = {
        "train": [{"uri": f"file://{tmp_path}/shards/"}, {"uri": f"file://{tmp_path}/more.jsonl", "weight": 1.5}],
        "test": {"uri": f"file://{inputs}/data/heldout.jsonl"},
        "augmentation": [
            {"type": "characterNoise", "probability": 0.5},
            {"type": "templates", "probability": 0.2, "templates": ["say {text}"]},
        ],
    }
    training = {"epochs": 3, "batchSize": 16, "learningRate": 0.003}
    _, words = succeeded(tmp_path / "whole", spec_of(inputs, tmp_path / "expected", data=data, training=training))
    spec = spec_of(inputs, tmp_path / "out", data=data, training=training)
    gang = Gang(tmp_path / "cut", spec, held_at=6)
    gang.when_held(lambda: gang.run_dir.request_stop("test"))
    assert gang.wait() == [ExitCode.INTERRUPTED], gang.log()
    succeeded(tmp_path / "cut", spec)
    assert difference(tmp_path / "out", tmp_path / "expected") == 0.0
    record = decode((tmp_path / "out" / "run.json").read_bytes())
    assert record.data.statistics is not None
    assert record.data.layout is not None
    assert len(record.data.statistics.digests) == 5
    assert record.data.weights == {f"file://{tmp_path}/more.jsonl": 1.5}
    seen = sum(each.rows for each in record.data.augmentation) // 2
    assert words.plan is not None
    assert seen == 3 * sum(
        round(s.documents * w) for s, w in zip(record.data.statistics.sources, (1, 1.5), strict=True)
    )
    for text in ((tmp_path / "out" / "README.md").read_text(), gang.log()):
        assert "augmentation characterNoise: " in text
        assert "packing efficiency" in text
        assert "% trained" in text
    assert "packing efficiency" in (tmp_path / "out" / "report.html").read_text()


def test_a_sharded_run_commits_the_whole_model(inputs: Path, tmp_path: Path) -> None:
    """Two processes, neither of which ever holds it."""
    training = {"maxSteps": 4, "batchSize": 8, "learningRate": 0.003}
    spec = spec_of(inputs, tmp_path / "out", method={"type": "full"}, strategy={"type": "fsdp"}, training=training)
    _, result = succeeded(tmp_path / "two", spec, ranks=2)
    assert result.plan is not None
    assert (result.plan.strategy, result.plan.world_size) == ("fsdp", 2)
    assert result.plan.parameters == result.plan.trainable_parameters
    alone = spec_of(inputs, tmp_path / "alone-out", method={"type": "full"}, training=training)
    _, other = succeeded(tmp_path / "one", alone)
    assert scored(result.evaluation) == pytest.approx(scored(other.evaluation), rel=1e-5)
    assert not verify(open_folder(f"file://{tmp_path}/out", prefix="")).problems


def test_a_run_on_shares_of_4_bits_writes_adapter_and_model(inputs: Path, tmp_path: Path) -> None:
    """Two processes, which count the weights of the base and not their bytes."""
    training = {"maxSteps": 3, "batchSize": 8, "learningRate": 0.003}
    sharded = {"method": {"type": "qlora"}, "strategy": {"type": "fsdp"}}
    spec = spec_of(inputs, tmp_path / "out", training=training, **sharded)
    spec["output"]["merged"] = True
    _, result = succeeded(tmp_path / "two", spec, ranks=2)
    assert result.plan is not None
    assert result.plan.strategy == "fsdp"
    whole = load_file(inputs / "model" / "model.safetensors")
    assert result.plan.parameters == sum(tensor.numel() for tensor in whole.values())
    merged = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in merged.items()} == {n: tensor.shape for n, tensor in whole.items()}
    assert not verify(open_folder(f"file://{tmp_path}/out", prefix="")).problems


def test_one_process_offloads_to_its_host_by_deepspeed(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subprocess.run([ROOT / "tools" / "deepspeed.sh"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("DeepSpeed cannot be installed here: tools/deepspeed.sh says why")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), made.stdout.strip()])))
    strategy = {"type": "deepspeed", "zeroStage": 3, "offload": "all"}
    training = {"maxSteps": 3, "batchSize": 8}
    spec = spec_of(inputs, tmp_path / "out", strategy=strategy, training=training)
    _, result = succeeded(tmp_path / "one", spec, command=True)  # DeepSpeed's folder is on its path from the start
    assert result.plan is not None
    assert result.plan.strategy == "deepspeed"
    assert not verify(open_folder(f"file://{tmp_path}/out", prefix="")).problems
