"""How long a sequence a model can place, told before it is asked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.data import DEFAULT_SEQUENCE_LENGTH, Data
from finetune_api.failures import FinetuneError, Reason

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def fitted(data: Data, folder: Path) -> Data:
    """The manifest's data with the sequence length that the model in `folder` allows: the default gives way to a model
    with less, what was asked for does not. InvalidSpec names the number to use."""
    most = most_positions(folder)
    if most is None or data.sequence_length <= most:
        return data
    if data.sequence_length == DEFAULT_SEQUENCE_LENGTH:
        return data.model_copy(update={"sequence_length": most})
    raise FinetuneError(
        Reason.InvalidSpec,
        f"data.sequenceLength {data.sequence_length} is more than the {most} positions that the model knows",
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
