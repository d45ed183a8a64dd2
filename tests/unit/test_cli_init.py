"""`finetune init`: manifests that validate, from answers, from flags and from the configuration of other trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.failures import ExitCode
from finetune_trainer.cli import init
from finetune_trainer.cli.conversion import DIALECTS, converted, without_torchrun
from finetune_trainer.cli.main import main

AXOLOTL = """
base_model: org/base
datasets: [{path: org/rows, type: alpaca}, {path: more.jsonl}]
val_set_size: 0.1
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj, k_proj, v_proj, o_proj]
sequence_len: 1024
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
learning_rate: 2e-4
optimizer: adamw_bnb_8bit
bf16: auto
output_dir: out
wandb_project: mine
"""
LLAMA_FACTORY = """
model_name_or_path: org/base
stage: sft
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity, house
template: llama3
cutoff_len: 2048
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
output_dir: saves/lora
"""
ARGUMENTS = """
num_train_epochs: 3
per_device_train_batch_size: 8
learning_rate: 5.0e-5
lr_scheduler_type: linear
"""
TRAIN_JOB = """
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata: {name: mine}
spec:
  runtimeRef: {name: torch-distributed}
  trainer:
    numNodes: 2
    image: corp/train:1
    command: [torchrun, train.py]
    args: [--epochs=3]
    resourcesPerNode: {limits: {nvidia.com/gpu: 1}}
    env: [{name: A, value: b}, {name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}]
"""
PYTORCH_JOB = """
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: mine}
spec:
  pytorchReplicaSpecs:
    Master: {replicas: 1, restartPolicy: OnFailure, template: {spec: {containers: [
      {name: pytorch, image: "corp/train:1", command: [python, train.py], volumeMounts: [{name: d, mountPath: /d}]}]}}}
    Worker: {replicas: 3, template: {spec: {containers: [{name: pytorch, image: "corp/train:1"}]}}}
"""
DEVICES = "the number of devices: training.batchSize 8 is for one; multiply it by those that you used"
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "Axolotl": (
        AXOLOTL,
        {
            "model": {"uri": "hf://org/base"},
            "data": {
                "sequenceLength": 1024,
                "train": [{"uri": "hf://datasets/org/rows/"}, {"uri": "./more.jsonl"}],
                "validation": {"fraction": 0.1},
            },
            "method": {"type": "qlora", "qlora": {"rank": 8, "alpha": 16, "targets": "attention"}},
            "training": {"epochs": 2, "learningRate": 2e-4, "optimizer": "adamw8bit", "batchSize": 8},
            "output": {"uri": "./out"},
        },
        {"wandb_project: mine", "datasets[0].type: alpaca", DEVICES},
    ),
    "LLaMA-Factory": (
        LLAMA_FACTORY,
        {
            "model": {"uri": "hf://org/base"},
            "data": {"sequenceLength": 2048, "train": [{"uri": "./identity.jsonl"}, {"uri": "./house.jsonl"}]},
            "method": {"type": "lora", "lora": {"rank": 8, "targets": "all-linear"}},
            "training": {"epochs": 3, "learningRate": 1e-4, "batchSize": 8},
            "output": {"uri": "./saves/lora"},
        },
        {
            "template: llama3",
            "dataset: identity, house (names of dataset_info.json; write the files into data.train)",
            DEVICES,
        },
    ),
    "Hugging Face's TrainingArguments": (
        ARGUMENTS,
        {
            "model": {"uri": init.MODEL},
            "data": {"train": [{"uri": "./train.jsonl"}]},
            "training": {"epochs": 3, "learningRate": 5e-5, "batchSize": 8, "schedule": "linear"},
        },
        {"model and data, which this file does not name: write yours, or use --model and --data", DEVICES},
    ),
    "Kubeflow's TrainJob": (
        TRAIN_JOB,
        {
            "command": ["python", "train.py", "--epochs=3"],
            "nodes": 2,
            "image": "corp/train:1",
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "pod": {"env": [{"name": "A", "value": "b"}]},
        },
        {"spec.trainer.env KEY", "spec.runtimeRef: {'name': 'torch-distributed'}"},
    ),
    "PyTorchJob": (
        PYTORCH_JOB,
        {"command": ["python", "train.py"], "nodes": 4, "image": "corp/train:1"},
        {
            "spec.pytorchReplicaSpecs.Master.restartPolicy: OnFailure",
            "spec.pytorchReplicaSpecs.Master container.volumeMounts: [{'name': 'd', 'mountPath': '/d'}]",
        },
    ),
}
"""Dialect → configuration, the spec, and what is reported."""


def test_each_dialect_has_a_case() -> None:
    assert {dialect.name for dialect in DIALECTS} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_is_converted_and_what_is_not_is_listed(name: str) -> None:
    text, spec, ignored = CASES[name]
    found = converted(yaml.safe_load(text))

    assert found.spec == spec
    assert set(found.ignored) == ignored


def test_arguments_with_a_model_are_not_said_to_lack_one() -> None:
    found = converted(yaml.safe_load(ARGUMENTS + "model_name_or_path: org/base"))
    assert found.spec["model"] == {"uri": "hf://org/base"}
    assert "data, which this file does not name: write yours, or use --model and --data" in found.ignored


@pytest.mark.parametrize("name", CASES)
def test_the_manifest_of_a_configuration_validates(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.yaml").write_text(CASES[name][0])
    job = str(tmp_path / "job.yaml")
    output = [] if "output" in CASES[name][1] else ["--output", "tuned"]

    assert main(["init", job, "--from", str(tmp_path / "theirs.yaml"), *output]) == ExitCode.OK, capsys.readouterr().err
    assert main(["validate", job]) == ExitCode.OK


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["torchrun", "--nproc-per-node=2", "a.py", "-x"], ["python", "a.py", "-x"]),
        (["python", "a.py"], ["python", "a.py"]),
        ([], []),
    ],
)
def test_torchrun_is_not_started_twice(command: list[str], expected: list[str]) -> None:
    assert without_torchrun(command) == expected


def test_half_an_epoch_is_rounded_up_and_said() -> None:
    found = converted({"num_train_epochs": 0.5})

    assert found.spec["training"] == {"epochs": 1}
    assert "num_train_epochs: 0.5 (rounded up)" in found.ignored


def test_flags_make_a_commented_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    flags = {"--model": "hf://org/base", "--data": "s3://corp/rows.jsonl", "--output": "s3://corp/models/2026-Triage_v2",
             "--test": "s3://corp/test.jsonl", "--secret": "corp-s3", "--nodes": "2", "--gpus": "4"}  # fmt: skip
    assert main(["init", str(file), *(word for pair in flags.items() for word in pair)]) == ExitCode.OK

    job = yaml.safe_load(file.read_text())
    assert job["metadata"]["name"] == "triage-v2"
    assert job["spec"]["data"]["credentials"] == job["spec"]["output"]["credentials"] == {"secretName": "corp-s3"}
    assert "# the base model" in file.read_text()
    assert f"finetune run {file}" in capsys.readouterr().out


def test_without_flags_it_asks_three_questions(tmp_path: Path) -> None:
    replies = {"base model": "hf://org/base", "training data": "rows.jsonl", "result": ""}
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return next(reply for words, reply in replies.items() if words in question)

    init.init(init.Answers(file=tmp_path / "job.yaml"), ask=ask)

    assert len(asked) == 3
    spec = yaml.safe_load((tmp_path / "job.yaml").read_text())["spec"]
    assert spec == {
        "model": {"uri": "hf://org/base"},
        "data": {"train": [{"uri": "./rows.jsonl"}]},
        "output": {"uri": "./tuned"},
    }


def test_a_file_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("mine")

    assert main(["init", str(file)]) == ExitCode.CONFIG
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["init", str(file), "--force"]) == ExitCode.OK


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ("{}", ExitCode.CONFIG, "known are those of Kubeflow's TrainJob"),
        ("[1]", ExitCode.CONFIG, "must contain one mapping"),
        pytest.param("a: " + "[" * 5000, ExitCode.CONFIG, "nested too deeply", id="nested"),
        ("a: &a [*a]", ExitCode.CONFIG, "contains it"),
        ("a: [", ExitCode.CONFIG, "not valid YAML or JSON"),
        ("{model_name_or_path: a, stage: dpo}", ExitCode.CONFIG, "spec.command"),
        ("{kind: PyTorchJob, spec: {}}", ExitCode.CONFIG, "has no spec.pytorchReplicaSpecs"),
        (None, ExitCode.NO_INPUT, "cannot read"),
    ],
)
def test_what_cannot_be_converted_says_so(
    content: str | None, status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.yaml"
    if content is not None:
        file.write_text(content)

    assert main(["init", str(tmp_path / "job.yaml"), "--from", str(file)]) == status
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "job.yaml").exists()


def test_standard_output_gets_nothing_but_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "-", "--name", "x"]) == ExitCode.OK
    assert json.dumps(yaml.safe_load(capsys.readouterr().out)["metadata"]) == '{"name": "x"}'
