"""Measurements as JSON, stored with the checkpoints: a run that resumes cannot measure the base model again."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.measurements import Scores
from finetune_trainer.data.corpus import Corpus

from .evaluate import Measured


def to_json(measured: Mapping[str, Measured], corpora: Mapping[str, Corpus]) -> dict[str, Any]:
    """By data set. Numbers keep all their digits, so that a resumed run gives the evaluation of one that was not
    stopped."""
    return {
        name: {
            "rows": _digest(corpora[name]),
            "scores": each.scores.to_json(),
            "nats": _packed(each.nats),
            "tokens": _packed(each.tokens),
            "labels": None if each.labels is None else _packed(each.labels),
        }
        for name, each in measured.items()
    }


def of_json(told: Any, corpora: Mapping[str, Corpus]) -> dict[str, Measured]:
    """Those of data sets that are still the same rows in the same order; nothing from what is not such a note."""
    found = {}
    for name, corpus in corpora.items():
        kept = told.get(name) if isinstance(told, dict) else None
        if not isinstance(kept, dict) or kept.get("rows") != _digest(corpus):
            continue
        nats, labels = _unpacked(kept["nats"], np.float64), kept.get("labels")
        shaped = None if labels is None else _unpacked(labels, np.float64).reshape(len(corpus), -1)
        scores = Scores.model_validate(kept["scores"], strict=False)
        found[name] = Measured(scores, nats, _unpacked(kept["tokens"], np.int64), shaped)
    return found


def _digest(corpus: Corpus) -> str:
    """Of the rows as the model sees them. Another version of the trainer may render or order files otherwise."""
    found = hashlib.sha256()
    for array in (corpus.offsets, corpus.tokens, corpus.trained, corpus.bytes, corpus.before):
        found.update(np.ascontiguousarray(array).tobytes())
    if corpus.choices is not None:
        found.update(np.ascontiguousarray(corpus.choices.gold).tobytes())
    return found.hexdigest()


def _packed(array: NDArray[Any]) -> str:
    return base64.b85encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()


def _unpacked(text: str, dtype: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype)
