"""Between the training loop and what spec.regularization adds to a step.

Replay           rows that a step has besides the training rows, see `replay`
KlToBase         a term of the loss that compares a micro-batch with the base model, see `kl_to_base`
Penalty          a term of the loss that depends on the weights alone, see `l2sp`
Regularization   all of a run
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch import Tensor

from finetune_trainer.data.corpus import Corpus, Numbers
from finetune_trainer.data.order import share
from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.parallel.base import Place

from .kl_to_base import KlToBase
from .replay import Replay

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Piece:
    """A micro-batch of a step."""

    batch: MicroBatch
    replayed: bool = False
    """Whether its rows are of general text."""


class Penalty(Protocol):
    """A term of the loss that depends on the weights alone: it is part of a step, and of no micro-batch."""

    @property
    def name(self) -> str:
        """Key of the manifest."""

    def value(self) -> Tensor:
        """This rank's part of the term, (): the ranks' sum is what a step adds to the mean loss per token."""

    def add_gradients(self, times: float) -> None:
        """Add the term's gradient, `times` over, to those of what trains; over all ranks that makes it once."""


@dataclass(frozen=True)
class Regularization:
    replay: Replay | None = None
    kl: KlToBase | None = None
    penalties: tuple[Penalty, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the manifest, in the order in which ranks add up their numbers."""
        named = {"replay": self.replay, "klToBase": self.kl, **{each.name: each for each in self.penalties}}
        return tuple(name for name, term in named.items() if term is not None)

    def shared(self, rows: Numbers, corpus: Corpus, step: int, place: Place) -> tuple[Numbers, Numbers]:
        """(training rows, replayed rows) of this rank, out of the step's training `rows` of `corpus`."""
        again = self.replay.of_step(step) if self.replay else _NONE
        lengths = corpus.lengths[rows]
        if self.replay is not None:
            lengths = np.concatenate([lengths, self.replay.corpus.lengths[again]])
        places = share(np.arange(len(lengths)), lengths, rank=place.rank, world_size=place.world_size)
        return rows[places[places < len(rows)]], again[places[places >= len(rows)] - len(rows)]

    def processed(self, step: int) -> int:
        """Tokens of the step's replayed rows."""
        return int(self.replay.corpus.lengths[self.replay.of_step(step)].sum()) if self.replay else 0

    def divergence(self, piece: Piece) -> KlToBase | None:
        """What compares the piece with the base model, if anything does."""
        return self.kl if self.kl is not None and self.kl.replayed == piece.replayed else None

    def and_penalties(self, more: Iterable[Penalty]) -> Regularization:
        return replace(self, penalties=(*self.penalties, *more))

    def pull(self, divisor: float) -> None:
        """Add the gradients of the penalties to those of a step's sums, which `divisor` will divide."""
        for penalty in self.penalties:
            penalty.add_gradients(divisor)

    def weight(self, piece: Piece) -> float:
        """By which the nats of a piece are multiplied."""
        return self.replay.weight if self.replay and piece.replayed else 1.0
