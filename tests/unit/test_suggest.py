"""What `finetune validate` says to somebody who wrote what another tool takes, or a path in place of a URI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import validate
from finetune_trainer.cli.paths import resolved
from finetune_trainer.cli.validate import read_manifest, validate_files


def manifest(**spec: Any) -> dict[str, Any]:
    given = {"model": {"uri": "hf://org/name"}, "data": {"train": [{"uri": "s3://corp/train.jsonl"}]}}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "a"},
        "spec": {**given, "output": {"uri": "s3://corp/out"}, **spec},
    }


def train(uri: str) -> dict[str, Any]:
    return {"data": {"train": [{"uri": uri}]}}


SUGGESTED: list[tuple[dict[str, Any], str, str]] = [
    ({"method": "lora"}, "spec.method", "did you mean {type: lora}?"),
    ({"strategy": "fsdp"}, "spec.strategy", "did you mean {type: fsdp}?"),
    ({"method": {"type": "lora", "lora": {"r": 8}}}, "spec.method.lora.r", "did you mean rank?"),
    ({"method": {"type": "lora", "lora": {"lora_alpha": 8}}}, "spec.method.lora.lora_alpha", "did you mean alpha?"),
    ({"training": {"learning_rate": 1}}, "spec.training.learning_rate", "did you mean learningRate?"),
    ({"training": {"num_train_epochs": 1}}, "spec.training.num_train_epochs", "did you mean epochs?"),
    ({"training": {"lr": 1}}, "spec.training.lr", "did you mean learningRate?"),
    ({"data": {"train": [{"uri": "s3://corp/a"}], "max_seq_length": 9}}, "spec.data.max_seq_length",
     "did you mean sequenceLength?"),
    ({"model": {"uri": "org/name"}}, "spec.model.uri", "did you mean hf://org/name?"),
    ({"model": {"uri": "https://huggingface.co/org/name"}}, "spec.model.uri", "did you mean hf://org/name?"),
    (train("https://huggingface.co/datasets/org/name"), "spec.data.train[0].uri",
     "did you mean hf://datasets/org/name?"),
    (train("org/name"), "spec.data.train[0].uri", "or hf://datasets/org/name on the hub"),
    (train("/srv/train.jsonl"), "spec.data.train[0].uri", "did you mean file:///srv/train.jsonl?"),
    (train("data/train.jsonl"), "spec.data.train[0].uri", "this is a relative path, which only local commands resolve"),
    (train("file:data/train.jsonl"), "spec.data.train[0].uri", "this is a relative path"),
    (train("file://data/train.jsonl"), "spec.data.train[0].uri", "this is a relative path"),
    ({"output": {"uri": "./out"}}, "spec.output.uri", "this is a relative path"),
    (train("s3://ab/train.jsonl"), "spec.data.train[0].uri", "bucket 'ab' has fewer than 3 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "path", "words"), SUGGESTED, ids=[f"{c[1]}: {c[2][:30]}" for c in SUGGESTED])
def test_what_was_meant_is_suggested(spec: dict[str, Any], path: str, words: str) -> None:
    told = {problem.path: problem.message for problem in validate(manifest(**spec))}
    assert words in told[path]


def test_buckets_of_three_characters_are_buckets() -> None:
    assert validate(manifest(**train("s3://abc/train.jsonl"))) == ()


PATHS = [
    ("data/train.jsonl", "file:///jobs/data/train.jsonl"),
    ("./data/", "file:///jobs/data/"),
    ("../train-*.jsonl", "file:///train-*.jsonl"),
    ("file:train.jsonl", "file:///jobs/train.jsonl"),
    ("file:../train.jsonl", "file:///train.jsonl"),
    ("file://data/train.jsonl", "file:///jobs/data/train.jsonl"),
    ("/srv/train.jsonl", "file:///srv/train.jsonl"),
    ("file:///srv/train.jsonl", "file:///srv/train.jsonl"),
    ("s3://corp/train.jsonl", "s3://corp/train.jsonl"),
    ("hf://datasets/org/name", "hf://datasets/org/name"),
    ("train", "file:///jobs/train"),
]


@pytest.mark.parametrize(("given", "uri"), PATHS, ids=[case[0] for case in PATHS])
def test_paths_on_this_machine(given: str, uri: str) -> None:
    spec = {**train(given), "output": {"uri": given}}
    spec["data"] |= {"test": {"uri": given}, "validation": {"uri": given}, "slices": [{"name": "a", "uri": given}]}
    spec["evaluation"] = {"references": [{"name": "a", "uri": given}]}
    found = resolved(manifest(**spec), Path("/jobs"))["spec"]
    assert found["evaluation"]["references"] == [{"name": "a", "uri": uri}]
    data = found["data"]
    assert {data["train"][0]["uri"], data["test"]["uri"], data["slices"][0]["uri"], found["output"]["uri"]} == {uri}
    assert data["validation"]["uri"] == uri


def test_a_model_is_a_path_where_there_is_such_a_folder(tmp_path: Path) -> None:
    def model(uri: str) -> str:
        return str(resolved(manifest(model={"uri": uri}), tmp_path)["spec"]["model"]["uri"])

    assert model("models/tiny") == "models/tiny"
    assert model("./models/tiny") == f"file://{tmp_path}/models/tiny"
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert model("models/tiny") == f"file://{tmp_path}/models/tiny"


@pytest.mark.parametrize("raw", [{}, {"spec": 3}, {"spec": {"data": 3, "model": {"uri": 4}}}, {"spec": {"data": {}}}])
def test_what_is_no_manifest_stays_what_it_is(raw: dict[str, Any]) -> None:
    assert resolved(raw, Path("/jobs")) == raw


def test_validate_takes_relative_paths_and_says_that_a_cluster_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\nspec:\n"
        "  model: {uri: ./tiny}\n  data: {train: [{uri: data/train.jsonl}]}\n  output: {uri: out}\n"
    )
    assert read_manifest(str(file)).spec.data.train[0].uri == f"file://{tmp_path}/data/train.jsonl"
    assert validate_files([str(file)]) == 0
    told = capsys.readouterr()
    assert "valid: a" in told.out
    (line,) = told.err.splitlines()
    assert "on this machine only: spec.model.uri, spec.data.train[0].uri, spec.output.uri: relative path" in line
