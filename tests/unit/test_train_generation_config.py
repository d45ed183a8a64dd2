"""What was trained to end an answer is what generation stops at, in every kind of artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from finetune_api.data import Data, TrainSource
from finetune_api.methods import Method
from finetune_api.spec import Output, Training
from finetune_trainer.data.corpus import corpus_of
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.parallel.single import Single
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.artifact_commit import check_export
from finetune_trainer.train.generation_config import added_stops, end_tokens
from finetune_trainer.train.run import Kept, _work
from finetune_trainer.train.setup import prepare
from tests.support.tiny_model import tiny_model, tiny_tokenizer
from tests.support.training import CPU, plan_for

TEXT_END, TURN_BEGIN, TURN_END = 256, 257, 258


def rows(*ends: int) -> Any:
    """Of a prompt, an answer of two bytes and what ends it, trained; then a line break that is not."""
    tokens = [np.array([10, 11, 20, 21, end, 198], np.int32) for end in ends]
    return corpus_of(tokens, [np.array([0, 0, 1, 1, 1, 0], bool)] * len(ends), [6] * len(ends))


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ([TURN_END] * 3, {TURN_END: "<|im_end|>"}),
        ([TURN_END, TURN_END, TEXT_END], {TURN_END: "<|im_end|>", TEXT_END: "<|endoftext|>"}),
        ([30, 31], {}),
        ([TURN_END] + [30] * 200, {}),
    ],
    ids=["one", "two", "bytes", "too few"],
)
def test_the_tokens_that_end_trained_passages(tmp_path: Path, ends: list[int], found: dict[int, str]) -> None:
    tiny_tokenizer(tmp_path)
    assert end_tokens(rows(*ends), Tokenizer.load(tmp_path)) == found


@pytest.mark.parametrize(
    ("generation", "config", "every"),
    [
        ({"eos_token_id": TEXT_END}, {"eos_token_id": TURN_END}, (TEXT_END, TURN_END)),
        ({"eos_token_id": [TEXT_END, 7]}, {}, (TEXT_END, 7, TURN_END)),
        (None, {"eos_token_id": TEXT_END}, (TEXT_END, TURN_END)),
        (None, {"text_config": {"eos_token_id": TEXT_END}}, (TEXT_END, TURN_END)),
        (None, {}, (TURN_END,)),
        ({"eos_token_id": TURN_END}, {}, None),
        ({"eos_token_id": [1, TURN_END]}, {}, None),
        (None, {"eos_token_id": TURN_END}, None),
    ],
)
def test_what_is_missing_is_added(
    tmp_path: Path, generation: dict[str, Any] | None, config: dict[str, Any], every: tuple[int, ...] | None
) -> None:
    tiny_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    added = added_stops(rows(TURN_END), tmp_path)
    assert (added and added.every) == every
    if added:
        assert added.line == "answers were trained to end with <|im_end|> (258): added to eos_token_id in " + (
            "generation_config.json"
        )


def artifact(tmp_path: Path, method: Method, **output: Any) -> Path:
    """Of a base model, which stops at the end of a text, tuned on conversations."""
    base = tiny_model(tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps(content | {"eos_token_id": TEXT_END}))
    (base / "additional_chat_templates").mkdir()
    template = (base / "chat_template.jinja").read_text()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text(template)
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"}]
    lines = [json.dumps({"messages": [turns[0] | {"content": f"hello {n}"}, turns[1]]}) for n in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    plan = plan_for(
        tmp_path,
        method=method,
        data=Data(train=(TrainSource(uri=f"file://{tmp_path}/train.jsonl"),), sequence_length=128),
        training=Training(batch_size=2, max_steps=1),
        output=Output(uri=f"file://{tmp_path}/output", **output),
    )
    folder = open_folder(plan.spec.output.uri, prefix="")
    setup = prepare(plan, gang=Single(), device=CPU, output=folder, run_dir=RunDir(tmp_path / "run"))
    check_export(setup)
    _work(setup, folder, Kept(plan, folder, {}))
    return tmp_path / "output"


@pytest.mark.parametrize(
    ("method", "output", "where"),
    [("full", {}, "."), ("lora", {}, "."), ("lora", {"merged": True}, "merged"), ("prompt", {}, ".")],
)
def test_an_artifact_stops_where_answers_end_and_keeps_every_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any, output: dict[str, Any], where: str
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    made = artifact(tmp_path, Method(type=method), **output)
    generation = json.loads((made / where / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [TEXT_END, TURN_END]
    assert (made / where / "additional_chat_templates" / "tool_use.jinja").is_file()
    record = json.loads((made / "run.json").read_text())
    assert any("end with <|im_end|> (258): added to eos_token_id" in note for note in record["notes"])
    card = (made / "README.md").read_text()
    assert ("model.generation_config.eos_token_id = [256, 258]" in card) == (method != "full")
    if (made / where / "config.json").exists():
        loaded = AutoModelForCausalLM.from_pretrained(made / where)
        assert loaded.generation_config.eos_token_id == [TEXT_END, TURN_END]
