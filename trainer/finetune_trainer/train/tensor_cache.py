"""Tensors that follow from model, text and seed, kept on the node under a digest of these."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer.parallel.base import Strategy


def write(file: Path, found: Mapping[str, Tensor]) -> None:
    """Nothing where the disk is full: the next attempt measures again."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: each.cpu().contiguous() for name, each in found.items()}, beside)
        beside.replace(file)
    except (OSError, SafetensorError):
        with suppress(OSError):
            beside.unlink()


def read(file: Path, strategy: Strategy, device: torch.device) -> dict[str, Tensor] | None:
    """Collective: None, so that all measure again, unless each rank has a file that it can read."""
    try:
        found = load_file(file, device=str(device))
    except (OSError, SafetensorError):  # not there, or cut off when the node went down
        found = None
    return found if strategy.sum_counters([found is None])[0] == 0 else None
