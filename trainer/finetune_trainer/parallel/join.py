"""Which strategy a gang uses."""

from __future__ import annotations

import torch

from .base import Place, Strategy
from .ddp import Ddp
from .single import Single


def join(place: Place, device: torch.device) -> Strategy:
    """Collective over all ranks; one process alone needs no process group."""
    return Single() if place.world_size == 1 else Ddp.join(place, device)
