"""What a step adds up: nats and counts of its training rows and of each key of spec.regularization, first over this
rank's micro-batches, then over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sums:
    nats: float = 0.0
    tokens: int = 0
    divisor: float = 0.0
    """Of the gradients: trained tokens, each with its weight."""
    added: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By key of spec.regularization: the sum, and what it is divided by."""

    @property
    def total(self) -> float:
        """Finite if all sums are."""
        return self.nats + sum(value for value, _ in self.added.values())

    def means(self) -> dict[str, float]:
        """By key; without those that the step has nothing of."""
        return {name: value / count for name, (value, count) in self.added.items() if count}

    def flat(self, names: Sequence[str]) -> list[float]:
        """For a sum over ranks; `of` reads it again."""
        pairs = [self.added.get(name, (0.0, 0.0)) for name in names]
        return [self.nats, self.tokens, self.divisor, *(number for pair in pairs for number in pair)]

    @classmethod
    def of(cls, flat: Sequence[float], names: Sequence[str]) -> Sums:
        pairs = zip(flat[3::2], flat[4::2], strict=True)
        return cls(flat[0], int(flat[1]), flat[2], dict(zip(names, pairs, strict=True)))


class Accumulator:
    """Of one rank. It waits for no GPU before `sums`."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = (None, *names)
        self._values = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._counts = [0.0] * len(self._names)
        self._divisor = 0.0

    def add(self, name: str | None, value: Tensor, count: float) -> None:
        """`name`: key of spec.regularization; None: of the training rows."""
        place = self._names.index(name)
        self._values[place] += value.detach()
        self._counts[place] += count

    def divide_by(self, tokens: float) -> None:
        self._divisor += tokens

    def sums(self) -> Sums:
        values = self._values.tolist()
        added = {name: (v, n) for name, v, n in zip(self._names, values, self._counts, strict=True) if name is not None}
        return Sums(values[0], int(self._counts[0]), self._divisor, added)
