"""What training needs from a gang of processes. A new strategy is one file next to this one and one line in `registry`.

Gang       how ranks talk: sums, broadcasts, a barrier
Weights    what trains, with its optimizer, as one rank holds it
Strategy   a gang that also says where weights lie: how a network is built, run, trained and taken out again
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from finetune_api.spec import Optimizer

T = TypeVar("T")

Packed = Callable[[nn.Module], Sequence[str]]
"""Returns the names of a network's linear layers whose weights are kept in 4 bits."""


@dataclass(frozen=True)
class Place:
    """A process's position in its gang, as torchrun reports it."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    """Processes on this node."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Place:
        return cls(
            rank=int(environ.get("RANK", "0")),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            world_size=int(environ.get("WORLD_SIZE", "1")),
            local_world_size=int(environ.get("LOCAL_WORLD_SIZE", "1")),
        )

    @property
    def first(self) -> bool:
        return self.rank == 0


class Gang(Protocol):
    """Every call but `place` is collective: all ranks make it, in the same order."""

    @property
    def place(self) -> Place: ...

    @property
    def name(self) -> str:
        """The name in status.plan."""

    def sum_gradients(self, flat: Sequence[Tensor]) -> None:
        """Sum each flat gradient buffer over the ranks, in place."""

    def sum_counters(self, counters: Sequence[float]) -> list[float]:
        """Sum a few numbers over the ranks, in double precision."""

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values for all ranks, in place."""

    def broadcast_json(self, value: Any) -> Any:
        """Rank 0's value for all ranks."""

    def barrier(self) -> None:
        """Return when all ranks are here."""

    def close(self) -> None:
        """Leave the gang."""


class Saved(Protocol):
    """What a checkpoint has of the tensors of `Weights`."""

    def read(self, name: str, rows: slice) -> Tensor:
        """Some rows of a tensor, on the CPU; several threads may ask at once."""


class Weights(Protocol):
    """What trains. Every call is collective. Tensors go by the names `weights/…`, `moments/….first` and
    `moments/….second` (moments once a step was made), and have the shapes of the whole, whatever the ranks hold: so a
    checkpoint fits any gang. 8-bit moments have `moments/….first.scales` and `moments/….second.scales` next to
    them."""

    @property
    def parts(self) -> int:
        """How many parts the rows are in, see `rows_of`: rank r has part r % parts. 1: no rank has less than the
        whole, or rank 0 can get it."""

    def backward(self, nats: Tensor, *, last: bool) -> None:
        """Add the gradients of a micro-batch to those of the step; `last`: no other follows in this step."""

    def step(self, rate: float, *, divisor: float, max_norm: float) -> float:
        """Sum the gradients over the ranks, divide them, clip them, update the weights, forget the gradients. Answers
        the norm before clipping; where that is not finite nothing is updated."""

    def tensors(self) -> dict[str, Tensor]:
        """By name: this rank's rows, or where `parts` is 1 the whole on rank 0, and others may get nothing. They may be
        views of what the next step changes."""

    def restore(self, saved: Saved | None, *, steps: int) -> None:
        """What was saved after `steps` steps. Where `parts` is 1 it is rank 0's, for all ranks, and None on others;
        else each rank has its own. None on all: rank 0's weights as they are."""

    def restore_weights(self, saved: Saved | None) -> None:
        """The weights alone, likewise."""

    def editable(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, what is done element by element to each trainable parameter is done to what counts."""


def rows_of(part: int, parts: int, length: int) -> slice:
    """Which of `length` rows a part has: all parts as many, but for the last ones that have any. 0 of 3, 7 → 0:3."""
    each = -(-length // parts)
    return slice(min(part * each, length), min((part + 1) * each, length))


class Strategy(Gang, Protocol):
    def build(
        self,
        kind: Any,
        path: Path,
        *,
        device: torch.device,
        frozen: bool,
        packed: Packed | None = None,
        products: torch.dtype | None = None,
        **options: Any,
    ) -> nn.Module:
        """The network of a class `…ForCausalLM` from the files in `path`; `options` are those of `from_pretrained`.

        `frozen`: none of its own weights will train. What is attached to it afterwards is complete on every rank.
        `packed`: where ranks share weights these are in 4 bits from the beginning; where each has all, the network
        stays in host memory, for the method to pack it on its way to the device. `products`: the dtype that they are
        computed in, where it is not that of the weights; what travels between ranks may have it."""

    def weights(
        self,
        network: nn.Module,
        trainable: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        optimizer: Optimizer = "adamw",
    ) -> Weights:
        """Take over what trains, once everything is attached."""

    def inside(self, network: nn.Module, work: Callable[[], T]) -> T:
        """Run `work`, which may use the network's embeddings and head, and run its body. Collective where weights are
        sharded: every rank does as many passes."""

    def in_step(self, work: Sequence[T], idle: T) -> Sequence[T]:
        """This rank's pieces of work, one pass each. Where passes are collective, ranks with fewer get `idle` too."""

    def agreed(self, wish: bool) -> bool:
        """Whether any rank wishes it. Where passes are not collective no other rank is asked."""

    def collect(self, network: nn.Module, *, everything: bool) -> None:
        """Collective, and the end of training: rank 0's network becomes one that can be written. `everything`: not
        only what was attached, but the model as well."""
