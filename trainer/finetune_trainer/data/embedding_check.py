"""Tokens that a model has no embedding for: words were added to its tokenizer, and the model was not resized."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finetune_api.failures import FinetuneError, Reason

from .corpus import Corpus, Tokens
from .load import Datasets
from .tokenizer import Tokenizer

_AT_ONCE = 1 << 22


def check_embedded(data: Datasets, *, embeddings: int, tokenizer_path: Path) -> None:
    """ModelUnsupported names the first such token. Without this a lookup would fail in the middle of a run, or find a
    learned prompt, whose tokens have the numbers after the vocabulary."""
    for name, tokens in _arrays(data):
        for start in range(0, len(tokens), _AT_ONCE):
            beyond = np.flatnonzero(tokens[start : start + _AT_ONCE] >= embeddings)
            if len(beyond):
                token = int(tokens[start + beyond[0]])
                text = Tokenizer.load(tokenizer_path).backend.id_to_token(token)
                raise FinetuneError(
                    Reason.ModelUnsupported,
                    f"{name}: the tokenizer has a token {token} ({text}), and the model embeddings for {embeddings}",
                    "Save the model after resize_token_embeddings(len(tokenizer)), or take the tokenizer it came with.",
                )


def _arrays(data: Datasets) -> Iterator[tuple[str, Tokens]]:
    named: dict[str, Corpus | None] = {
        "train": data.train, "validation": data.validation, "test": data.test, "general": data.general,
        "replay": data.replay,
    }  # fmt: skip
    for name, corpus in {**named, **{f"slice {name}": corpus for name, corpus in data.slices.items()}}.items():
        if corpus is not None:
            yield name, corpus.tokens
            if corpus.choices:
                yield f"{name}, labels", np.concatenate(corpus.choices.answers)
