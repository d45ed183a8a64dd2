"""Which strategy a gang uses. A new one is a file beside this one and a line in `STRATEGIES`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .base import Place, Strategy
from .ddp import Ddp
from .single import Single


def join(place: Place, device: torch.device) -> Strategy:
    """Collective over all ranks; one process alone needs no process group. `spread` says where weights will lie."""
    return Single() if place.world_size == 1 else Ddp.join(place, device)


def _fsdp(gang: Ddp) -> Strategy:
    from .fsdp import Fsdp

    return Fsdp(gang.place, gang.device)


STRATEGIES: dict[str, Callable[[Ddp], Strategy]] = {
    "ddp": lambda gang: gang,
    "fsdp": _fsdp,
}


def spread(gang: Strategy, kind: str) -> Strategy:
    """The same gang with the strategy of this name; one process has nothing to share out."""
    return STRATEGIES[kind](gang) if isinstance(gang, Ddp) else gang
