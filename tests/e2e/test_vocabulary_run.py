"""New tokens by `finetune run`, to artifacts that plain transformers and PEFT load and that score as reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.failures import ExitCode
from finetune_trainer.methods.servable import judge
from tests.support.local_runs import Workspace

pytestmark = pytest.mark.timeout(600)

TERMS = ["backwards", "abc-def"]


def manifest(workspace: Workspace, name: str, **changes: Any) -> dict[str, Any]:
    made = workspace.manifest(name=name, vocabulary={"terms": TERMS, "mine": True, "maxNewTokens": 24}, **changes)
    made["spec"] |= {"nodes": 1, "training": {"maxSteps": 6, "batchSize": 16, "learningRate": 0.01}}
    return made


def model_in(output: Path, *, adapter: bool) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(output / "base" if adapter else output, dtype=torch.float32)
    return PeftModel.from_pretrained(base, output).eval() if adapter else base.eval()


def loss_of(model: Any, folder: Path, rows: Path) -> float:
    """Nats per trained token of {"prompt", "completion"}, by the libraries alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, count = 0.0, 0
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        told = tokenizer(row["prompt"] + row["completion"], return_offsets_mapping=True)
        ids = torch.tensor([[*told.input_ids, tokenizer.eos_token_id]])
        trained = torch.tensor([[*(stop > len(row["prompt"]) for _, stop in told.offset_mapping), True]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=torch.where(trained, ids, -100)).loss
        nats, count = nats + float(loss) * int(trained.sum()), count + int(trained.sum())
    return nats / count


def test_an_adapter_with_its_extended_base_loads_and_scores_as_reported(workspace: Workspace) -> None:
    asked = manifest(workspace, "lora", output={"uri": (workspace.folder / "out").as_uri(), "merged": True})
    assert workspace.run(asked) == ExitCode.OK, workspace.story("lora")
    output = workspace.folder / "out"
    reported = workspace.job("lora").status.evaluation
    assert reported is not None
    [test] = [each for each in reported.data if each.kind == "test"]
    adapted = model_in(output, adapter=True)
    rows = workspace.files / "corpus" / "heldout.jsonl"
    assert loss_of(adapted, output / "base", rows) == pytest.approx(test.tuned, rel=1e-4)
    assert loss_of(model_in(output / "merged", adapter=False), output, rows) == pytest.approx(test.tuned, rel=1e-4)
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(output / "base")
    assert judge(output).servable == "lora"
    assert judge(output / "base").servable == judge(output / "merged").servable == "merged"
    assert adapted.config.vocab_size == 259 + 24
    _old_rows_are_the_base_models(adapted, workspace.files / "model")
    record = json.loads((output / "run.json").read_text())["data"]["vocabulary"]
    assert (record["newTokens"], record["addedRows"]) == (24, 19)
    assert [(term["term"], term["after"] == 1) for term in record["terms"]] == [("backwards", True), ("abc-def", False)]
    assert "abc-def is not one token" in (output / "report.html").read_text()
    assert "from_pretrained('path/of/this/folder/base')" in (output / "README.md").read_text()


def _old_rows_are_the_base_models(adapted: Any, base: Path) -> None:
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    after = adapted.get_base_model().get_input_embeddings().weight
    assert torch.equal(after[:259], before[:259])


def test_a_whole_model_with_new_tokens(workspace: Workspace) -> None:
    assert workspace.run(manifest(workspace, "full", method={"type": "full"})) == ExitCode.OK, workspace.story("full")
    output = workspace.folder / "output" / "full"
    [test] = [each for each in workspace.job("full").status.evaluation.data if each.kind == "test"]  # type: ignore[union-attr]
    whole = model_in(output, adapter=False)
    assert loss_of(whole, output, workspace.files / "corpus" / "heldout.jsonl") == pytest.approx(test.tuned, rel=1e-4)
    assert whole.get_input_embeddings().weight.shape[0] == 259 + 24


def test_rows_that_were_there_train_and_the_tokenizer_stays(workspace: Workspace) -> None:
    asked = manifest(workspace, "rows")
    asked["spec"]["vocabulary"] = {"terms": ["abc", "fed"], "existingRows": True}
    assert workspace.run(asked) == ExitCode.OK, workspace.story("rows")
    output = workspace.folder / "output" / "rows"
    [test] = [each for each in workspace.job("rows").status.evaluation.data if each.kind == "test"]  # type: ignore[union-attr]
    adapted = model_in(output, adapter=True)
    rows = workspace.files / "corpus" / "heldout.jsonl"
    assert loss_of(adapted, output / "base", rows) == pytest.approx(test.tuned, rel=1e-4)
    tokenizers = [(folder / "tokenizer.json").read_bytes() for folder in (output / "base", workspace.files / "model")]
    assert tokenizers[0] == tokenizers[1]


def test_a_tokenizer_without_merges_is_refused_before_anything_trains(workspace: Workspace, tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models

    folder = tmp_path / "unigram"
    folder.mkdir()
    for file in (workspace.files / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), *((letter, -1.0) for letter in "abcdefkrswd :")], unk_id=0))
    unigram.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<|im_start|>", "<|im_end|>")])
    unigram.save(str(folder / "tokenizer.json"))
    asked = manifest(workspace, "unigram", model={"uri": folder.as_uri()})
    assert workspace.run(asked) == ExitCode.CONFIG, workspace.story("unigram")
    assert "this model is a Unigram tokenizer, which has none" in " ".join(workspace.said("unigram").split())
