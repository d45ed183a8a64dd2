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
