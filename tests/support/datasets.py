"""Tokenised data sets from rows that a test writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.data import Data
from finetune_trainer.data.load import Datasets, load_datasets
from tests.support.tokenizers import tokenizer_folder


def spec_of(train: str | list[str], **fields: Any) -> Data:
    uris = [train] if isinstance(train, str) else train
    return Data.model_validate({"train": tuple({"uri": uri} for uri in uris), **fields})


def load(tmp_path: Path, spec: Data, *, seed: int = 1) -> Datasets:
    model = tmp_path / "model"
    if not model.exists():
        tokenizer_folder(model)
    return load_datasets(spec, tokenizer_path=model, cache=tmp_path / "cache", seed=seed)


def texts(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"text": f"row {number}"} for number in range(start, start + count)]


def labelled(count: int, word: str = "row") -> list[dict[str, object]]:
    return [{"text": f"{word} {number}", "label": ("no", "yes")[number % 2]} for number in range(count)]
