"""From a manifest to a trainer, in this process: what the model, its tokenizer and the data do not agree on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

from finetune_api.data import Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import EarlyStopping, ModelSource, Training
from finetune_trainer.agent.preflight import check
from finetune_trainer.parallel.single import Single
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.models import LocalModel
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.pinned_inputs import Inputs, check_digests
from finetune_trainer.train.setup import prepare
from tests.support.tiny_model import tiny_corpus, tiny_model
from tests.support.training import CPU, plan_for


def with_added(folder: Path, *tokens: str) -> None:
    """Words that the tokenizer gets, and the model does not."""
    file = folder / "model" / "tokenizer.json"
    backend = Backend.from_file(str(file))
    backend.add_special_tokens(list(tokens))
    backend.save(str(file))


def desk(folder: Path) -> Path:
    tiny_model(folder / "model")
    tiny_corpus(folder, rows=24)
    return folder


def data(folder: Path, **changes: Any) -> Data:
    return Data(train=(TrainSource(uri=f"file://{folder}/train.jsonl"),), sequence_length=128, **changes)


def test_a_padding_token_that_was_added_to_the_tokenizer_alone_is_not_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """264 embeddings, 259 tokens, and a [PAD] that comes behind them."""
    folder = desk(tmp_path)
    with_added(folder, *(f"<spare {n}>" for n in range(6)), "[PAD]")
    config = folder / "model" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "[PAD]"}))
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    plan = plan_for(folder, data=data(folder, packing=False), training=Training(batch_size=4, max_steps=2))
    check(plan, cache=tmp_path / "cache")
    output = open_folder(plan.spec.output.uri, prefix="")
    setup = prepare(plan, gang=Single(), device=CPU, output=output, run_dir=RunDir(tmp_path / "run"))
    assert setup.data.pad_id == 265
    assert setup.trainer.layout.pad_id == 0
    state = setup.trainer.run(setup.trainer.checkpointer.resume(setup.trainer.weights).update(base={}))
    assert state.step == 2


def test_a_word_that_was_added_to_the_tokenizer_alone_is_refused_before_anything_waits(tmp_path: Path) -> None:
    folder = desk(tmp_path)
    with_added(folder, *(f"<spare {n}>" for n in range(6)), "abc")
    (folder / "train.jsonl").write_text('{"prompt": "say: ", "completion": "abc"}\n{"prompt": "b", "completion": "c"}')
    with pytest.raises(FinetuneError, match=r"a token 265 \(abc\), and the model embeddings for 264") as caught:
        check(plan_for(folder, data=data(folder)), cache=tmp_path / "cache")
    assert caught.value.reason is Reason.ModelUnsupported


def test_files_that_change_between_attempts_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = desk(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    plan = plan_for(folder, data=data(folder))
    output = open_folder(plan.spec.output.uri, prefix="")

    def attempt() -> None:
        inputs = Inputs.of(plan, Single(), output)
        local = inputs.model(plan.spec.model, cache=tmp_path / "cache")
        inputs.data(plan.spec.data, tokenizer_path=local.path, cache=tmp_path / "cache", seed=1)

    attempt()
    attempt()
    before = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(before + '{"prompt": "one", "completion": "more"}\n')
    with pytest.raises(FinetuneError, match=r"train\.jsonl is not what this run began with") as caught:
        attempt()
    assert caught.value.reason is Reason.DataChanged
    assert caught.value.exit_code == 65
    (folder / "train.jsonl").write_text(before)
    attempt()


def test_a_model_that_is_written_anew_between_attempts_ends_the_run(tmp_path: Path) -> None:
    """Weights of the same names, shapes and bytes in all: a folder that somebody trained on meanwhile."""
    folder = desk(tmp_path)
    plan = plan_for(folder, data=data(folder))
    output = open_folder(plan.spec.output.uri, prefix="")
    weights = folder / "model" / "model.safetensors"

    def attempt() -> None:
        Inputs.of(plan, Single(), output).model(plan.spec.model, cache=tmp_path / "cache")

    attempt()
    before = weights.read_bytes()
    os.utime(weights, (1, 1))  # the same content, copied again
    attempt()
    tensors = load_file(weights)
    last = sorted(tensors)[-1]
    tensors[last] = tensors[last] + 0.001
    save_file(tensors, weights, metadata={"format": "pt"})
    assert len(weights.read_bytes()) == len(before)
    with pytest.raises(FinetuneError, match=rf"{weights.name} is not what this run began with \(") as caught:
        attempt()
    assert caught.value.reason is Reason.DataChanged
    weights.write_bytes(before)
    attempt()


@pytest.mark.parametrize(
    ("now", "words"),
    [({"a": "1"}, None), ({"a": "2"}, "a is not what"), ({"a": "1", "b": "3"}, "b is not what"), ({}, "a is not what"),
     ({"a": "2", "b": "3"}, "a is not what this run began with, and so are 1 more")],
)  # fmt: skip
def test_another_content_is_named(now: dict[str, str], words: str | None) -> None:
    if words is None:
        check_digests(now, {"a": "1"})
        return
    with pytest.raises(FinetuneError, match=words):
        check_digests(now, {"a": "1"})


def test_every_rank_and_attempt_trains_the_commit_that_the_first_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`main` is commit a, then b; rank 1 of the second attempt has seen b alone."""
    asked: list[str | None] = []

    def resolve(source: ModelSource, *, cache: Path, prefix: str = "") -> LocalModel:
        asked.append(source.revision)
        return LocalModel(cache, source.revision or head, source.uri)

    monkeypatch.setattr("finetune_trainer.train.pinned_inputs.resolve_model", resolve)
    source = ModelSource(uri="hf://org/name")
    plan = plan_for(tmp_path)
    output = open_folder(plan.spec.output.uri, prefix="")
    for attempt in ("a", "b"):
        head = attempt
        assert Inputs.of(plan, Single(), output).model(source, cache=tmp_path).revision == "a"
    told = cast(Any, SimpleNamespace(broadcast_json=lambda value: value or "a"))
    assert Inputs(told, None).model(source, cache=tmp_path).revision == "a"
    assert asked == [None, None, "a", None, "a"]


def test_early_stopping_without_anything_to_judge_by_is_refused(tmp_path: Path) -> None:
    folder = desk(tmp_path)
    (folder / "train.jsonl").write_text('{"prompt": "one row", "completion": "alone"}\n')
    plan = plan_for(folder, data=data(folder), training=Training(early_stopping=EarlyStopping(patience=2)))
    with pytest.raises(FinetuneError, match=r"training\.earlyStopping needs validation rows") as caught:
        check(plan, cache=tmp_path / "cache")
    assert caught.value.reason is Reason.InvalidSpec
    check(plan_for(folder, data=data(folder)), cache=tmp_path / "cache")
