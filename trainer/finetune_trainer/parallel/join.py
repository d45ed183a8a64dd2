"""Which strategy a gang uses. A new one is a file beside this one and a line in `STRATEGIES`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from finetune_api.strategy import Strategy as Settings

from .base import Place, Strategy
from .ddp import Ddp
from .single import Single


def join(place: Place, device: torch.device) -> Strategy:
    """Collective over all ranks; one process alone needs no process group. `spread` says where weights will lie."""
    return Single() if place.world_size == 1 else Ddp.join(place, device)


def _fsdp(gang: Strategy, device: torch.device, _: Settings) -> Strategy:
    from .fsdp import Fsdp

    return Fsdp(gang.place, device) if isinstance(gang, Ddp) else gang  # one process has nothing to share out


def _deepspeed(gang: Strategy, device: torch.device, settings: Settings) -> Strategy:
    from .deepspeed import DeepSpeed

    if not isinstance(gang, Ddp):
        gang = Ddp.alone(device)
    return DeepSpeed(gang.place, device, stage=settings.stage, offload=settings.offload or "none")


STRATEGIES: dict[str, Callable[[Strategy, torch.device, Settings], Strategy]] = {
    "ddp": lambda gang, *_: gang,
    "fsdp": _fsdp,
    "deepspeed": _deepspeed,
}


def spread(gang: Strategy, kind: str, *, device: torch.device, settings: Settings) -> Strategy:
    """The same gang with the strategy of this name."""
    return STRATEGIES[kind](gang, device, settings)
