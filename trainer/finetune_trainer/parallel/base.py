"""What training needs from a gang of processes. A new strategy is one file beside this one and one line in `join`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Of a process in its gang, as torchrun tells it."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Place:
        return cls(
            rank=int(environ.get("RANK", "0")),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            world_size=int(environ.get("WORLD_SIZE", "1")),
        )

    @property
    def first(self) -> bool:
        return self.rank == 0


class Strategy(Protocol):
    """Every call but `place` is collective: all ranks make it, in the same order."""

    @property
    def place(self) -> Place: ...

    @property
    def name(self) -> str: ...

    def sum_gradients(self, flat: Sequence[Tensor]) -> None:
        """Sum each flat gradient buffer over the ranks, in place."""

    def sum_counters(self, counters: Sequence[float]) -> list[float]:
        """Sum a few numbers over the ranks, in double precision."""

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values for everybody, in place."""

    def broadcast_json(self, value: Any) -> Any:
        """Rank 0's value for everybody."""

    def barrier(self) -> None:
        """Return when all ranks are here."""

    def close(self) -> None:
        """Leave the gang."""
