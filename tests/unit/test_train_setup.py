"""From a manifest to a trainer, in this process: what the model, its tokenizer and the data do not agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from finetune_api.data import Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import EarlyStopping, Training
from finetune_trainer.agent.preflight import check
from finetune_trainer.parallel.single import Single
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.folder import open_folder
from finetune_trainer.train.setup import prepare
from tests.tiny import tiny_corpus, tiny_model
from tests.train_helpers import CPU, plan_for


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
    state = setup.trainer.run(setup.trainer.keeper.resume(setup.trainer.weights).update(base={}))
    assert state.step == 2


def test_a_word_that_was_added_to_the_tokenizer_alone_is_refused_before_anything_waits(tmp_path: Path) -> None:
    folder = desk(tmp_path)
    with_added(folder, *(f"<spare {n}>" for n in range(6)), "abc")
    (folder / "train.jsonl").write_text('{"prompt": "say: ", "completion": "abc"}\n{"prompt": "b", "completion": "c"}')
    with pytest.raises(FinetuneError, match=r"a token 265 \(abc\), and the model embeddings for 264") as caught:
        check(plan_for(folder, data=data(folder)), cache=tmp_path / "cache")
    assert caught.value.reason is Reason.ModelUnsupported


def test_early_stopping_without_anything_to_judge_by_is_refused(tmp_path: Path) -> None:
    folder = desk(tmp_path)
    (folder / "train.jsonl").write_text('{"prompt": "one row", "completion": "alone"}\n')
    plan = plan_for(folder, data=data(folder), training=Training(early_stopping=EarlyStopping(patience=2)))
    with pytest.raises(FinetuneError, match=r"training\.earlyStopping judges by validation rows") as caught:
        check(plan, cache=tmp_path / "cache")
    assert caught.value.reason is Reason.InvalidSpec
    check(plan_for(folder, data=data(folder)), cache=tmp_path / "cache")
