"""What of an adapter can be checked before a network is touched, from its configuration and the header of its weights.

PEFT finds most of these faults halfway through a load, when some layers have the adapter already, and a wrong base or a
missing layer not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.methods.servable import judge
from finetune_trainer.store.headers import Header, file_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_LARGEST_CONFIG = 1 << 20
"""Bytes; those that this project writes have 1 KiB."""

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

_AGAIN = "Fetch or export the adapter again; finetune verify names damaged files."


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An exported adapter on disk."""

    name: str
    folder: Path
    base_weights: str = ""
    """Fingerprint of the base model that its run recorded; empty: not known."""


@dataclass(frozen=True, kw_only=True)
class ServedBase:
    """The base model in memory, as adapters must match it."""

    name: str
    """As adapters name it."""
    revision: str | None
    weights: str
    """Its fingerprint; empty: not known."""
    shapes: Mapping[str, tuple[int, int]]
    """(out, in) of each linear layer, by its name in the network. Empty: not known, and not checked."""


def check(adapter: Adapter, base: ServedBase, *, largest_rank: int) -> int:
    """The adapter's rank. DataUnreadable for files that are missing, cut off or not what they claim; ModelUnsupported
    for another base, a rank above `largest_rank`, and what is not a LoRA adapter that servers load."""
    config = _config(adapter)
    _check_base(adapter, config, base)
    rank = _rank(adapter, config)
    if rank > largest_rank:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"adapter {adapter.name} has rank {rank}, and the server's maximum is {largest_rank}",
            f"Raise the server's maximum (max-lora-rank in vLLM) to {rank} or more, or train with a lower rank.",
        )
    _check_shapes(adapter, _header(adapter), base, rank)
    return rank


def rank_of(adapter: Adapter) -> int:
    """As its configuration says. DataUnreadable, ModelUnsupported."""
    return _rank(adapter, _config(adapter))


def _config(adapter: Adapter) -> dict[str, Any]:
    file = adapter.folder / CONFIG
    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"it has more than {_LARGEST_CONFIG} bytes")
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(adapter, CONFIG, error) from None
    return config


def _rank(adapter: Adapter, config: Mapping[str, Any]) -> int:
    rank = config.get("r")
    if type(rank) is not int or rank < 1:
        raise FinetuneError(Reason.DataUnreadable, f"adapter {adapter.name}: {CONFIG} has no rank", _AGAIN)
    return rank


def _header(adapter: Adapter) -> Header:
    """Of weights that are all there, and of a kind that servers load."""
    file = adapter.folder / WEIGHTS
    try:
        header = file_header(file)
        size = file.stat().st_size
        if size != header.stop:
            raise ValueError(f"it has {size} bytes of {header.stop}")
        verdict = judge(adapter.folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(adapter, WEIGHTS, error) from None
    if verdict.reasons:
        reasons = "; ".join(verdict.reasons)
        hint = "Only LoRA adapters that servers load can share a base: see status.artifact.servable."
        raise FinetuneError(Reason.ModelUnsupported, f"adapter {adapter.name} is not such an adapter: {reasons}", hint)
    return header


def _unreadable(adapter: Adapter, file: str, error: Exception) -> FinetuneError:
    why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
    return FinetuneError(Reason.DataUnreadable, f"adapter {adapter.name}: {file} cannot be used: {why[:300]}", _AGAIN)


def _check_base(adapter: Adapter, config: Mapping[str, Any], base: ServedBase) -> None:
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if named != base.name:
        raise _other_base(adapter, f"{str(named)[:300]}, and the base in memory is {base.name}")
    if revision and base.revision and revision != base.revision:
        raise _other_base(adapter, f"revision {str(revision)[:80]} of {base.name}, and {base.revision} is in memory")
    if adapter.base_weights and base.weights and adapter.base_weights != base.weights:
        raise _other_base(adapter, f"other weights of {base.name} than are in memory")


def _other_base(adapter: Adapter, what: str) -> FinetuneError:
    message = f"adapter {adapter.name} was trained on {what}"
    return FinetuneError(Reason.ModelUnsupported, message, "Serve it on the base that it was trained on.")


def _check_shapes(adapter: Adapter, header: Header, base: ServedBase, rank: int) -> None:
    """Each factor fits the layer that it is for, and none is there without the other."""
    factors: dict[str, set[str]] = {}
    for key, entry in header.tensors.items():
        found = _KEY.fullmatch(key)
        assert found is not None, "judged before"
        module, factor = found["module"], found["factor"]
        factors.setdefault(module, set()).add(factor)
        if not base.shapes:
            continue
        if (layer := base.shapes.get(module)) is None:
            raise _other_base(adapter, f"a model with a layer {module[:200]}, which the base in memory does not have")
        fitting = (rank, layer[1]) if factor == "A" else (layer[0], rank)
        if entry.shape != fitting:
            raise _other_base(adapter, f"another model: {key[:200]} has shape {entry.shape}, and {fitting} would fit")
    if alone := [module for module, found in factors.items() if len(found) < 2]:
        message = f"adapter {adapter.name}: {alone[0][:200]} has one factor of two in {WEIGHTS}"
        raise FinetuneError(Reason.DataUnreadable, message, _AGAIN)
