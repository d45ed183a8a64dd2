"""Data parallel: every rank holds all weights, and gradients are summed once for each optimizer step.

No wrapper around the model and no hooks: gradients are in flat buffers, which are summed in pieces of bounded size when
the last micro-batch of a step is done. Ranks may have micro-batches of other sizes and numbers, or none at all, since
what is summed are sums, and the division by the step's trained tokens comes after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .base import Place
from .replicated import Replicated

_BUCKET_BYTES = 64 << 20
"""gloo keeps a copy of what it reduces, so a bucket bounds that memory; bigger ones gain nothing."""


@dataclass(frozen=True)
class Ddp(Replicated):
    place: Place
    device: torch.device
    name: str = "ddp"

    @classmethod
    def join(cls, place: Place, device: torch.device, *, timeout: timedelta = timedelta(minutes=30)) -> Ddp:
        """gloo for small numbers and CPU tensors, nccl for those of a GPU. The address comes from torchrun."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=timeout)
        return cls(place, device)

    @classmethod
    def alone(cls, device: torch.device) -> Ddp:
        """A group of this process."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
        return cls(Place(), device)

    def sum_gradients(self, flat: Sequence[Tensor]) -> None:
        for buffer in flat:
            for piece in _pieces(buffer):
                dist.all_reduce(piece)

    def sum_counters(self, counters: Sequence[float]) -> list[float]:
        numbers = torch.tensor(list(counters), dtype=torch.float64)
        dist.all_reduce(numbers)
        return [float(value) for value in numbers.tolist()]

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            for piece in _pieces(tensor):
                dist.broadcast(piece, src=0)

    def broadcast_json(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def barrier(self) -> None:
        self.sum_counters([0.0])

    def close(self) -> None:
        dist.destroy_process_group()


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tensor.view(-1), max(1, _BUCKET_BYTES // tensor.element_size()))
