"""The tokens that end an answer, as they were trained, and the generation_config.json that stops at them.

Base models stop at an end-of-text token that a chat template never writes: tuned on the template they would continue
after each answer, for the configuration that servers and transformers read does not name its end-of-turn token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.tokenizer import Tokenizer

FILE = "generation_config.json"

_SHARE = 0.01
"""Of the trained passages, that a token must end: fewer may be a token that the text contained."""


@dataclass(frozen=True)
class AddedStops:
    """Tokens that end trained answers and that the base model's configuration does not stop at."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    every: tuple[int, ...]
    """With those that it had."""

    @property
    def line(self) -> str:
        """For a reader."""
        named = ", ".join(f"{text} ({token})" for text, token in zip(self.texts, self.tokens, strict=True))
        return f"answers were trained to end with {named}: added to eos_token_id in {FILE}"

    def write(self, folder: Path, base: Path) -> None:
        """Into the generation_config.json of an exported folder; without one, into a copy of the base model's."""
        content = _json(folder / FILE) or _json(base / FILE)
        text = json.dumps(content | {"eos_token_id": list(self.every)}, indent=2, sort_keys=True)
        (folder / FILE).write_text(text + "\n")


def added_stops(train: Corpus, base: Path) -> AddedStops | None:
    """None where every trained end is one that the configuration of the model in `base` stops at."""
    known = _known(base)
    found = end_tokens(train, Tokenizer.load(base))
    new = {token: text for token, text in found.items() if token not in known}
    return AddedStops(tuple(new), tuple(new.values()), (*known, *new)) if new else None


def stop_tokens(train: Corpus, base: Path) -> frozenset[int]:
    """What generation stops at once the model is tuned: the base model's end tokens, and those of trained answers."""
    return frozenset((*_known(base), *end_tokens(train, Tokenizer.load(base))))


def end_tokens(train: Corpus, tokenizer: Tokenizer) -> dict[int, str]:
    """Token to text, of the tokens that may end a turn and that end trained passages, the most frequent first."""
    last = np.flatnonzero(train.trained & ~np.append(train.trained[1:], False) | _row_ends(train))
    ids, counts = np.unique(train.tokens[last], return_counts=True)
    frequent = sorted(zip(counts.tolist(), ids.tolist(), strict=True), reverse=True)
    enough = _SHARE * len(last)
    named = {token: tokenizer.backend.id_to_token(token) for count, token in frequent if count >= enough}
    return {token: text for token, text in named.items() if text and tokenizer.stops.closes(text)}


def _row_ends(train: Corpus) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether a token is trained and the last of its row."""
    ends = np.zeros(len(train.tokens), np.bool_)
    ends[np.asarray(train.offsets[1:]) - 1] = True
    return ends & train.trained


def _known(base: Path) -> tuple[int, ...]:
    """What generation stops at: generation_config.json's, else config.json's, as transformers reads them."""
    config = _json(base / "config.json")
    text = config.get("text_config")
    for source in (_json(base / FILE), config, text if isinstance(text, dict) else {}):
        value = source.get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list):
            return tuple(value)
    return ()


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
