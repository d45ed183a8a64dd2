"""Every rank holds the whole model: passes are its own affair, and ranks meet once a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from finetune_api.spec import Optimizer

from .base import Gang, Packed, Weights
from .flat_adamw import FlatAdamW

T = TypeVar("T")


class Replicated:
    """The half of a strategy that says where weights lie; `Single` and `Ddp` add the other."""

    def build(
        self,
        kind: Any,
        path: Path,
        *,
        device: torch.device,
        frozen: bool,  # noqa: ARG002
        packed: Packed | None = None,
        products: torch.dtype | None = None,  # noqa: ARG002
        **options: Any,
    ) -> nn.Module:
        network: nn.Module = kind.from_pretrained(path, **options)
        return network if packed else network.to(device)

    def weights(
        self: Gang,
        network: nn.Module,  # noqa: ARG002
        trainable: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        optimizer: Optimizer = "adamw",
    ) -> Weights:
        return FlatAdamW(trainable, weight_decay=weight_decay, gang=self, optimizer=optimizer)

    def inside(self, network: nn.Module, work: Callable[[], T]) -> T:  # noqa: ARG002
        return work()

    def in_step(self, work: Sequence[T], idle: T) -> Sequence[T]:  # noqa: ARG002
        return work

    def agreed(self, wish: bool) -> bool:
        return wish

    def collect(self, network: nn.Module, *, everything: bool) -> None:
        pass
