"""Which strategy a gang uses. To add one, add a file next to this one and a line in `STRATEGIES`."""

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


def _fsdp(gang: Strategy, device: torch.device, _: Settings, shards: int | None) -> Strategy:
    from .fsdp import Fsdp

    return Fsdp(gang.place, device, shards=shards) if isinstance(gang, Ddp) else gang  # one process shares nothing


def _deepspeed(gang: Strategy, device: torch.device, settings: Settings, _: int | None) -> Strategy:
    from .deepspeed import DeepSpeed

    if not isinstance(gang, Ddp):
        gang = Ddp.alone(device)
    return DeepSpeed(gang.place, device, stage=settings.stage, offload=settings.offload or "none")


STRATEGIES: dict[str, Callable[[Strategy, torch.device, Settings, int | None], Strategy]] = {
    "ddp": lambda gang, *_: gang,
    "fsdp": _fsdp,
    "deepspeed": _deepspeed,
}


def spread(
    gang: Strategy, kind: str, *, device: torch.device, settings: Settings, shards: int | None = None
) -> Strategy:
    """The same gang with the strategy of this name. `shards`: under fsdp, how many processes share a weight."""
    return STRATEGIES[kind](gang, device, settings, shards)
