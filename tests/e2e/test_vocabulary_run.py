"""New tokens by `finetune run`, to artifacts that plain transformers and PEFT load and that score as reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet as pq

from finetune_api.failures import ExitCode
from finetune_trainer.methods.servable import judge
from finetune_trainer.report.record import decode
from tests.support.local_runs import Workspace
from tests.support.task_sequence import output, task, trained
from tests.support.tiny_model import numbers_as_text, tiny_model

pytestmark = pytest.mark.timeout(600)

TERMS = ["backwards", "abc-def"]
NEW = {"terms": [*TERMS, "STEMI"], "mine": True, "maxNewTokens": 24}


def manifest(workspace: Workspace, name: str, **changes: Any) -> dict[str, Any]:
    made = workspace.manifest(name=name, vocabulary={"terms": TERMS, "mine": True, "maxNewTokens": 24}, **changes)
    made["spec"] |= {"nodes": 1, "training": {"maxSteps": 6, "batchSize": 16, "learningRate": 0.01}}
    return made


def model_in(output: Path, *, adapter: bool) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(output / "base" if adapter else output, dtype=torch.float32)
    return PeftModel.from_pretrained(base, output).eval() if adapter else base.eval()


def measured(model: Any, folder: Path, rows: Path) -> tuple[float, float]:
    """(nats per trained token, bits per byte) of {"prompt", "completion"}, by the libraries alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, count, size = 0.0, 0, 0
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        told = tokenizer(row["prompt"] + row["completion"], return_offsets_mapping=True)
        ids = torch.tensor([[*told.input_ids, tokenizer.eos_token_id]])
        trained = torch.tensor([[*(stop > len(row["prompt"]) for _, stop in told.offset_mapping), True]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=torch.where(trained, ids, -100)).loss
        nats, count = nats + float(loss) * int(trained.sum()), count + int(trained.sum())
        size += sum(stop - start for (start, stop) in told.offset_mapping if stop > len(row["prompt"]))
    return nats / count, nats / (math.log(2) * size)


def test_an_adapter_with_its_extended_base_loads_and_scores_as_reported(workspace: Workspace) -> None:
    asked = manifest(workspace, "lora", output={"uri": (workspace.folder / "out").as_uri(), "merged": True})
    assert workspace.run(asked) == ExitCode.OK, workspace.story("lora")
    output = workspace.folder / "out"
    reported = workspace.job("lora").status.evaluation
    assert reported is not None
    [test] = [each for each in reported.data if each.kind == "test"]
    adapted = model_in(output, adapter=True)
    rows = workspace.files / "corpus" / "heldout.jsonl"
    assert test.metric == "bitsPerByte", "tokens are not those of the base model"
    assert measured(adapted, output / "base", rows)[1] == pytest.approx(test.tuned, rel=1e-4)
    assert measured(model_in(output / "merged", adapter=False), output, rows)[1] == pytest.approx(test.tuned, rel=1e-4)
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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    tiny_model(folder / "model")
    numbers_as_text(folder / "general.jsonl", rows=24)
    return folder


def spec_of(root: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A job that trains on words to say backwards, and measures general text too."""
    made = task(root, name, **changes)
    made["data"] = {**task(root, "shared")["data"], "general": {"uri": (root / "general.jsonl").as_uri()}}
    made["data"]["sequenceLength"] = 384
    made["training"] |= {"microBatchTokens": 512}
    made["guards"] = {"minGain": 0.0, "forgetting": {"maxBitsPerByteIncrease": 0.01}, "onViolation": "warn"}
    return made


def records(root: Path, name: str, path: str) -> Any:
    return pq.read_table(output(root, name) / "evaluation" / f"{path}.parquet")


def of_base(root: Path, name: str, path: str, *columns: str) -> list[dict[str, Any]]:
    rows = [row for row in records(root, name, path).to_pylist() if row["model"] == "base"]
    return [{column: row[column] for column in columns} for row in rows]


@pytest.fixture(scope="module")
def plain(root: Path) -> Path:
    """A job without vocabulary."""
    generate = {"generate": {"maxNewTokens": 12, "maxRows": 20}}
    with pytest.MonkeyPatch.context() as patch:
        trained(root, "plain", spec_of(root, "plain", evaluation=generate), patch)
        trained(root, "new", spec_of(root, "new", vocabulary=NEW, evaluation=generate), patch)
    return root


def test_the_base_model_is_measured_as_in_a_run_without_new_tokens(plain: Path) -> None:
    """To the bit: with its own tokenizer and its own logits, wherever the same text is trained. A new token may join
    the space before an answer to it, which then is trained too."""
    same = set()
    for path in ("test", "general"):
        found, wanted = (of_base(plain, name, path, "row", "nats", "bytes", "tokens") for name in ("new", "plain"))
        assert len(found) == len(wanted) == 24
        pairs = [(one, other) for one, other in zip(found, wanted, strict=True) if one["bytes"] == other["bytes"]]
        assert all(one == other for one, other in pairs)
        assert len(pairs) == 24 if path == "general" else len(pairs) >= 8
        same |= {one["row"] for one, _ in pairs}
        tuned = [row for row in records(plain, "new", path).to_pylist() if row["model"] == "tuned"]
        assert [row["bytes"] for row in tuned] == [row["bytes"] for row in found]
        assert sum(row["tokens"] for row in tuned) < sum(row["tokens"] for row in found)
    columns = ("row", "mode", "answer", "tokens")
    answers = [of_base(plain, name, "generated/test", *columns) for name in ("new", "plain")]
    told = [[each for each in every if each["row"] in same and each["mode"] == "greedy"] for every in answers]
    assert told[0] == told[1] != []


def test_guards_compare_with_it_and_variety_is_not_judged_by_other_tokens(plain: Path) -> None:
    runs = {name: decode((output(plain, name) / "run.json").read_bytes()) for name in ("new", "plain")}
    mains = {name: {each.kind: each for each in found.evaluation.data} for name, found in runs.items()}
    assert [mains["new"][kind].metric for kind in ("test", "general")] == ["bitsPerByte", "bitsPerByte"]
    assert mains["new"]["general"].base == mains["plain"]["general"].base
    guards = {each.name: each for each in runs["new"].evaluation.guards}
    assert guards["forgetting"].value == mains["new"]["general"].difference
    assert guards["minGain"].verdict != "inconclusive"
    collapse = runs["new"].evaluation.collapse
    assert collapse is not None
    assert (collapse.verdict, collapse.figures) == ("inconclusive", ())


def test_a_whole_model_with_new_tokens(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spec_of(plain, "full", method={"type": "full"}, vocabulary=NEW)
    trained(plain, "full", made, monkeypatch)
    folder = output(plain, "full")
    [test] = [each for each in decode((folder / "run.json").read_bytes()).evaluation.data if each.kind == "test"]
    whole = model_in(folder, adapter=False)
    rows = plain / "data" / "shared" / "heldout.jsonl"
    assert measured(whole, folder, rows)[1] == pytest.approx(test.tuned, rel=1e-4)
    assert whole.get_input_embeddings().weight.shape[0] == 259 + 24
    assert of_base(plain, "full", "general", "row", "nats") == of_base(plain, "plain", "general", "row", "nats")


def test_rows_that_were_there_train_and_the_tokenizer_stays(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spec_of(plain, "rows", vocabulary={"terms": ["abc", "fed"], "existingRows": True})
    trained(plain, "rows", made, monkeypatch)
    folder = output(plain, "rows")
    [test] = [each for each in decode((folder / "run.json").read_bytes()).evaluation.data if each.kind == "test"]
    rows = plain / "data" / "shared" / "heldout.jsonl"
    adapted = model_in(folder, adapter=True)
    assert measured(adapted, folder / "base", rows)[0] == pytest.approx(test.tuned, rel=1e-4)
    tokenizers = [(each / "tokenizer.json").read_bytes() for each in (folder / "base", plain / "model")]
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
