"""For strategies whose passes are collective: every rank does as many, and they agree before one stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from .ddp import Ddp

T = TypeVar("T")


class Lockstep(Ddp):
    def in_step(self, work: Sequence[T], idle: T) -> Sequence[T]:
        counts = [0.0] * self.place.world_size
        counts[self.place.rank] = len(work)
        return [*work, *[idle] * (int(max(self.sum_counters(counts))) - len(work))]

    def agreed(self, wish: bool) -> bool:
        return self.sum_counters([wish])[0] > 0
