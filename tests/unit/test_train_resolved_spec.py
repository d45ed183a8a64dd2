"""run.json's spec is what ran: nothing is left open, and what model, data or attempt changed is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetune_api import manifest as manifests
from finetune_api.data import DEFAULT_SEQUENCE_LENGTH, Data, TrainSource
from finetune_api.methods import Lora, Method, Partial
from finetune_api.names import API_VERSION, KIND
from finetune_api.spec import Training
from finetune_trainer.parallel.single import Single
from finetune_trainer.report.card import model_card
from finetune_trainer.report.record import decode
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.artifact_commit import record_of
from finetune_trainer.train.setup import Setup, prepare
from finetune_trainer.train.state import State
from finetune_trainer.transfer.evidence import Evidence
from finetune_trainer.transfer.release import Release
from tests.support.tiny_model import tiny_corpus, tiny_model
from tests.support.training import plan_for

POSITIONS = 200


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_model(folder / "model")
    tiny_corpus(folder, rows=24)
    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": POSITIONS}))
    return folder


def set_up(files: Path, folder: Path, method: Method, *, micro_batch_tokens: int | None = None) -> Setup:
    """`micro_batch_tokens`: what the attempt's plan says, after an attempt that ran out of memory."""
    data = Data(train=(TrainSource(uri=f"file://{files}/train.jsonl"),))
    plan = plan_for(files, data=data, method=method, training=Training(batch_size=4))
    plan = plan.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
    output = open_folder(f"file://{folder}/output", prefix="")
    device = torch.device("cpu")
    return prepare(plan, gang=Single(), device=device, output=output, run_dir=RunDir(folder / "run"))


@pytest.mark.parametrize(
    ("method", "settled"),
    [
        (Method(lora=Lora(rank=4)), {"lora": {"rank": 4, "alpha": 8}}),
        (Method(lora=Lora(rank=64, rs_lora=True)), {"lora": {"rank": 64, "alpha": 16, "rsLora": True}}),
        (Method(type="partial"), None),
        (Method(type="ptuning"), {"ptuning": {"hidden": 64}}),
    ],
    ids=["lora", "rsLora", "partial", "ptuning"],
)
def test_what_the_manifest_left_open_is_filled_in(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, settled: dict[str, Any] | None
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(files / "cache"))
    setup = set_up(files, tmp_path, method)
    asked, spec = setup.plan.spec, setup.spec
    assert asked.data.sequence_length == DEFAULT_SEQUENCE_LENGTH
    assert spec.data.sequence_length == POSITIONS - method.virtual_tokens
    assert (spec.training.precision, spec.training.micro_batch_tokens) == ("float32", 1024)
    assert spec.training.learning_rate
    assert spec.strategy.type == "ddp"
    assert spec.data.format != "auto"
    dumped = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if settled is None:
        assert isinstance((spec.method.partial or Partial()).layers, int)
    else:
        assert {name: value for name, value in dumped["method"].items() if name != "type"} == settled
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "again"}, "spec": dumped}
    assert manifests.load(yaml.safe_dump(document)).spec == spec, "it can be applied as it is"


def test_the_record_and_the_card_tell_what_ran(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the manifest leaves to `auto` or to the attempt, compared with the trainer that was made."""
    monkeypatch.setenv("FINETUNE_CACHE", str(files / "cache"))
    setup = set_up(files, tmp_path, Method(type="partial"), micro_batch_tokens=300)
    trainer, asked = setup.trainer, setup.plan.spec
    record = decode(record_of(setup, State(), Evidence(), Release()).encode())
    spec = record.spec
    assert record.manifest == asked

    assert (asked.method.partial or Partial()).layers == "auto"
    network = trainer.model.network
    trained = {int(name.split(".")[2]) for name in setup.attached.trainable if name.startswith("model.layers.")}
    layers = network.config.num_hidden_layers
    assert spec.method.partial is not None
    assert trained == set(range(layers - int(spec.method.partial.layers), layers))

    assert asked.strategy.type == "auto"
    assert trainer.strategy.name == "single"
    assert spec.strategy.type == "ddp", "one process: the same as data parallelism over one"

    assert asked.training.micro_batch_tokens is None
    assert spec.training.micro_batch_tokens == trainer.layout.max_tokens == 300

    assert asked.training.learning_rate is None
    assert spec.training.learning_rate == trainer.course.peak_rate

    configuration = yaml.safe_load(model_card(record).split("---")[1])["configuration"]
    assert configuration["method"]["partial"]["layers"] == spec.method.partial.layers
    assert configuration["training"]["microBatchTokens"] == 300
    assert configuration["training"]["learningRate"] == trainer.course.peak_rate
