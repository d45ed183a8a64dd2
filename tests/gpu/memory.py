"""Peaks of memory and the end of all work, on a card or not."""

from __future__ import annotations

import gc
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def begin_peak(device: torch.device) -> None:
    """What is free goes back first, or what loading once took would count for ever."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> tuple[int, int]:
    """(bytes reserved, bytes allocated) at the most; of a process on a CPU its largest resident size."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return resident, resident


def wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
