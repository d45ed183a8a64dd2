"""What a way to adapt a model must be able to do, and what only some can. A new method is a file next to this one and a
line in `registry`.

Method, Attached    required of every method
HasPrompt, SwitchesOff, Continues, Merges, Scales, UpdatesByProducts, FitsWithoutSteps, LeavesWeightsOut
                    optional abilities of an attached method: the loop asks for the ability and never for the method
PacksWeights        an optional ability of a method
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

from finetune_api.methods import Probe as ProbeSettings
from finetune_trainer.data.corpus import Tokens
from finetune_trainer.transfer.probe import Probe as Classifier

from .merged import Change


class Attached(Protocol):
    """A method at work on one network."""

    @property
    def kind(self) -> Literal["adapter", "model"]:
        """What `export` writes."""

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Name to parameter, in an order that every rank and every attempt shares."""

    @property
    def lowest_layer(self) -> int:
        """The lowest decoder layer that trains; the backward ends there. -1: the embeddings train too."""

    def settle(self) -> None:
        """Bring the weights into the form that `export` writes, so that what is measured is what is shipped."""

    def export(self, folder: Path) -> None:
        """Write the files that servers load."""


@runtime_checkable
class HasPrompt(Protocol):
    """An attached method that puts learned positions in front of every row."""

    @property
    def ids(self) -> Tokens:
        """Numbers of the virtual tokens that belong in front of every row; empty where they are none."""

    @property
    def in_front(self) -> int:
        """Learned keys and values before every row, which are not tokens of it."""

    def off(self) -> AbstractContextManager[None]:
        """Inside, the network is the untouched base model."""


@runtime_checkable
class SwitchesOff(Protocol):
    """An attached method whose network is the model that the run started from whenever that is wanted."""

    def as_base(self) -> AbstractContextManager[None]:
        """Inside, the network is that model, to the bit: the untouched base, with the earlier adapter if there is one.
        What requires gradients stays so."""


@runtime_checkable
class Continues(Protocol):
    """An attached method that may have an earlier adapter below it."""

    @property
    def continues(self) -> bool:
        """Whether there is one."""

    def as_original(self) -> AbstractContextManager[None]:
        """Inside, the network is the base model without either adapter."""


@runtime_checkable
class Merges(Protocol):
    """An attached method whose result can be written into the base's weights."""

    def changes(self) -> Iterator[Change]:
        """Each tensor of the base that the merged model has otherwise."""


@runtime_checkable
class Scales(Protocol):
    """An attached method whose update is linear in one factor."""

    def apply_at(self, scale: float) -> None:
        """From now on the network has `scale` times the trained update, and `export` writes that. 1: as trained."""


@dataclass(frozen=True)
class Product:
    """The low-rank update of one matrix: scale · b · a."""

    a: nn.Parameter
    """(rank, in)"""
    b: nn.Parameter
    """(out, rank)"""
    scale: float
    layer: nn.Module
    """Whose results have the update in them."""


@runtime_checkable
class UpdatesByProducts(Protocol):
    """An attached method that changes the model by low-rank updates of its matrices, and by nothing else."""

    def products(self) -> Iterator[Product]:
        """Those of all matrices. Every rank holds the whole factors."""


@runtime_checkable
class FitsWithoutSteps(Protocol):
    """An attached method that is fitted at once to states of the frozen model, see `train.linear_probe`."""

    classifier: Classifier | None
    """Once it is fitted."""

    @property
    def settings(self) -> ProbeSettings: ...


@runtime_checkable
class LeavesWeightsOut(Protocol):
    """An attached method that may not reach all matrices of the blocks."""

    @property
    def without(self) -> int:
        """Weights of the blocks' matrices that no adapter can be attached to, such as those of experts."""


@runtime_checkable
class PacksWeights(Protocol):
    """A method that keeps the base in fewer bits than it came in."""

    def quantise(self, network: nn.Module, *, device: torch.device) -> None:
        """The linear layers of the blocks, each moved to `device` as it is packed, then the rest of the network."""

    def packed_layers(self, network: nn.Module, *, device: torch.device | None) -> list[str]:
        """Names of these layers. ModelUnsupported where packing would save little, or changes weights on this
        device, None: on one that is not here; `network` may be on the meta device."""

    def on_paper(self) -> Method:
        """The same method for a network without values, of which nothing can be packed."""


def without_adapter(attached: Attached) -> int:
    """Weights of the blocks' matrices that have no adapter although the method adapts matrices."""
    return attached.without if isinstance(attached, LeavesWeightsOut) else 0


@dataclass(frozen=True)
class Base:
    """The untouched model."""

    name: str
    """For users of the export: `org/name` of a hub model, else its URI."""
    dtype: torch.dtype
    """Of its files; in memory it may be another."""
    revision: str | None = None
    """Commit of a hub model."""
    folder: Path | None = None
    """Where its files are now."""
    earlier: Path | None = None
    """An exported adapter that stays below what is attached, frozen: the run starts from both."""


class Method(Protocol):
    def attach(self, network: nn.Module, *, seed: int, base: Base) -> Attached:
        """Prepare `network` in place: what trains requires gradients, all else does not."""

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        """The exported model, ready to be used; `network` is the untouched base."""
