"""One process, without any communication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .base import Place
from .replicated import Replicated


@dataclass(frozen=True)
class Single(Replicated):
    place: Place = field(default_factory=Place)
    name: str = "single"

    def sum_gradients(self, flat: Sequence[Tensor]) -> None:
        pass

    def sum_counters(self, counters: Sequence[float]) -> list[float]:
        return [float(value) for value in counters]

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        pass

    def broadcast_json(self, value: Any) -> Any:
        return value

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass
