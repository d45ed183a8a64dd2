"""What one model generates, greedy and sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.generated_text import Mode

from .prompts import Prompts


@dataclass(frozen=True, eq=True)
class Answers:
    """One model in one mode, an answer for each prompt."""

    tokens: tuple[tuple[int, ...], ...]
    """Without the token that ends an answer."""
    stopped: tuple[bool, ...]
    """Whether the model ended the answer by itself."""

    def below(self, end: int) -> Answers:
        """Without the ids from `end` on."""
        return replace(self, tokens=tuple(tuple(id for id in each if id < end) for each in self.tokens))


Answered = Mapping[Mode, Answers]


def cut(generated: NDArray[np.int64], stops: frozenset[int]) -> tuple[tuple[int, ...], bool]:
    """(the tokens before the first end token, whether there is one) of what follows a prompt."""
    tokens = generated.tolist()
    end = next((at for at, token in enumerate(tokens) if token in stops), None)
    return tuple(tokens[:end]), end is not None


def to_json(answered: Answered, prompts: Prompts) -> dict[str, Any]:
    return {
        "prompts": _digest(prompts),
        **{mode: {"tokens": each.tokens, "stopped": each.stopped} for mode, each in answered.items()},
    }


def of_json(told: Any, prompts: Prompts) -> Answered | None:
    """None from what is not such a note, or is one of other prompts."""
    if not isinstance(told, dict) or told.get("prompts") != _digest(prompts):
        return None
    modes: tuple[Mode, ...] = ("greedy", "sampled")
    return {
        mode: Answers(tuple(map(tuple, told[mode]["tokens"])), tuple(told[mode]["stopped"]))
        for mode in modes
        if mode in told
    }


def _digest(prompts: Prompts) -> str:
    found = hashlib.sha256()
    for row in (*prompts.tokens, *prompts.references):
        found.update(np.ascontiguousarray(row).tobytes() + b"|")
    return found.hexdigest()
