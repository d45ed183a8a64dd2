"""What a way to adapt a model must be able to do. A new method is a file beside this one and a line in `registry`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import nn


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


@dataclass(frozen=True)
class Base:
    """The untouched model."""

    name: str
    """For whoever loads the export: `org/name` of a hub model, else where it lies."""
    dtype: torch.dtype
    """Of its files; in memory it may be another."""
    revision: str | None = None
    """Commit of a hub model."""
    folder: Path | None = None
    """Where its files are now."""


class Method(Protocol):
    def attach(self, network: nn.Module, *, seed: int, base: Base) -> Attached:
        """Prepare `network` in place: what trains requires gradients, all else does not."""

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        """The exported model, ready to be used; `network` is the untouched base."""


@dataclass(frozen=True)
class Layers:
    """The decoder blocks of a network: where they live and how many there are."""

    prefix: str
    count: int

    def index(self, name: str) -> int:
        """The block that a module or parameter belongs to; -1 outside of the blocks."""
        if not name.startswith(self.prefix + "."):
            return -1
        return int(name[len(self.prefix) + 1 :].split(".", 1)[0])


def decoder_layers(network: nn.Module) -> Layers:
    """The longest list of blocks of one class. ValueError where there is none."""
    found = [
        Layers(name, len(module))
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not found:
        raise ValueError(f"{type(network).__name__} has no list of decoder blocks")
    return max(found, key=lambda layers: layers.count)


def lowest_layer(trainable: Mapping[str, nn.Parameter], layers: Layers, *, embeddings: nn.Module) -> int:
    """The lowest block that trains; -1 when the input embeddings do, the number of blocks when only the head does."""
    at_the_input = {id(parameter) for parameter in embeddings.parameters()}
    if any(id(parameter) in at_the_input for parameter in trainable.values()):
        return -1
    inside = [index for name in trainable if (index := layers.index(name)) >= 0]
    return min(inside, default=layers.count)
