"""The maximum sequence length of a model, checked before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.data import DEFAULT_SEQUENCE_LENGTH, Data
from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_SHORTEST = 8
"""Of data.sequenceLength, by the schema."""


def fitted(data: Data, folder: Path, method: Method) -> Data:
    """The manifest's data with the sequence length that the model in `folder` allows, after the virtual tokens of
    `method`: the default gives way to a model with less, what was asked for does not. InvalidSpec names
    the number to use."""
    known = most_positions(folder)
    if known is None:
        return data
    most = known - method.virtual_tokens
    if data.sequence_length <= most:
        return data
    taken = f", of which virtual tokens take {method.virtual_tokens}" if method.virtual_tokens else ""
    if most < _SHORTEST:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"no sequence fits into the {known} positions that the model knows{taken}",
            f"Set method.{method.type}.virtualTokens to at most {known - _SHORTEST}.",
        )
    if data.sequence_length == DEFAULT_SEQUENCE_LENGTH:
        return data.model_copy(update={"sequence_length": most})
    raise FinetuneError(
        Reason.InvalidSpec,
        f"data.sequenceLength {data.sequence_length} is more than the {known} positions that the model knows{taken}",
        f"Set data.sequenceLength: {most}, or use a model with a longer context.",
    )


def most_positions(folder: Path) -> int | None:
    """Tokens of the longest sequence; None where config.json sets no limit (ALiBi, state-space models).

    Rotary embeddings that are stretched (YaRN, linear, dynamic) reach `factor` times as far as they were trained,
    whether or not max_position_embeddings says so.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    config = {**config, **(config.get("text_config") or {})}
    stated = next((config[name] for name in _NAMES if isinstance(config.get(name), int)), None)
    return None if stated is None else max(stated, _stretched(config, stated))


def _stretched(config: dict[str, Any], stated: int) -> int:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor = rope.get("factor")
    if not isinstance(factor, int | float):
        return stated
    original = rope.get("original_max_position_embeddings")
    return int(factor * (original if isinstance(original, int) else stated))
