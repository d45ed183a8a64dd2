"""The traps of vocabularies: words that a tokenizer has and the model has not, and texts that cannot end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.embedding_check import check_embedded
from finetune_trainer.data.load import Datasets, load_datasets
from tests.support.tokenizers import tokenizer_folder, write_jsonl


def grown(folder: Path) -> int:
    """A tokenizer that somebody taught STEMI; answers how many tokens it had before."""
    backend = Backend.from_file(str(tokenizer_folder(folder) / "tokenizer.json"))
    before = backend.get_vocab_size()
    backend.add_tokens(["STEMI"])
    backend.save(str(folder / "tokenizer.json"))
    return before


def load(folder: Path, *rows: dict[str, str], **changes: Any) -> Datasets:
    dev = write_jsonl(folder / "dev.jsonl", {**rows[0], ("text" if "text" in rows[0] else "prompt"): "held out"})
    uri = write_jsonl(folder / "train.jsonl", *rows)
    spec = Data.model_validate({"train": ({"uri": uri},), "validation": {"uri": dev}, **changes}, strict=False)
    return load_datasets(spec, tokenizer_path=folder / "model", cache=folder / "cache", seed=1)


ROWS = [
    ([{"prompt": "a", "completion": "NSTEMI"}], {}, "train: the tokenizer has a token"),
    ([{"text": "a", "label": "STEMI"}, {"text": "b", "label": "no"}], {}, "train: the tokenizer has a token"),
    ([{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}],
     {"classification": {"labels": ("yes", "no", "STEMI")}}, "train: the tokenizer has a token"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "changes", "message"), ROWS, ids=["answer", "label", "label of no row"])
def test_a_token_without_an_embedding_is_named(
    tmp_path: Path, rows: list[dict[str, str]], changes: dict[str, Any], message: str
) -> None:
    known = grown(tmp_path / "model")
    data = load(tmp_path, *rows, **changes)
    with pytest.raises(FinetuneError, match=message) as caught:
        check_embedded(data, embeddings=known, tokenizer_path=tmp_path / "model")
    assert caught.value.reason is Reason.ModelUnsupported
    assert f"{known} (STEMI)" in caught.value.message
    assert "resize_token_embeddings" in caught.value.hint
    check_embedded(data, embeddings=known + 1, tokenizer_path=tmp_path / "model")


def test_a_token_that_no_row_uses_is_none_of_our_business(tmp_path: Path) -> None:
    known = grown(tmp_path / "model")
    data = load(tmp_path, {"prompt": "a", "completion": "b"})
    check_embedded(data, embeddings=known, tokenizer_path=tmp_path / "model")


def without_end(folder: Path, template: str | None) -> None:
    tokenizer_folder(folder, template=template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "rows",
    [[{"prompt": "a", "completion": "b"}], [{"text": "a", "label": "x"}, {"text": "b", "label": "xy"}]],
    ids=["completion", "classification"],
)
def test_an_answer_that_nothing_ends_is_refused(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    without_end(tmp_path / "model", None)
    with pytest.raises(FinetuneError, match="the tokenizer names no eos_token") as caught:
        load(tmp_path, *rows)
    assert caught.value.reason is Reason.ModelUnsupported
    assert caught.value.hint


def test_what_ends_by_itself_needs_no_end_token(tmp_path: Path) -> None:
    without_end(tmp_path / "model", None)
    load(tmp_path, {"text": "a passage"})
