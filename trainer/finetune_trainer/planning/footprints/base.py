"""What a method has to say of its costs, and the two formulas that methods share.

A footprint is abstract in everything that a new method has to define, so that nothing counts as zero by omission. Bytes
are those of one process without sharding; `spread` defines how ranks share them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from finetune_api.methods import Method
from finetune_trainer.planning.model import ModelShape


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a pass over one token keeps for its backward pass, in addition to what any decoder block keeps."""

    attention: bool
    """Whether matrices of the attention train or are adapted: then they keep their input."""
    mlp: bool
    """The same of the feed-forward network."""
    added: int
    """Bytes that what was added keeps, in all blocks together."""
    around: int = 0
    """Bytes that are made outside of what a block records, and are there even where blocks run again."""
    forward: int | None = None
    """Bytes at the peak of a forward pass, for a method without a backward pass: then nothing else counts."""


class Footprint(ABC):
    @abstractmethod
    def trained(self, shape: ModelShape, method: Method) -> int:
        """Parameters that train."""

    @abstractmethod
    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:
        """`width`: bytes of a number that is computed; `row`: tokens of a row that documents share, else 0."""

    @abstractmethod
    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:
        """Bytes that the method needs for a moment, whatever the number of tokens."""

    @abstractmethod
    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:
        """Floating-point operations for one token of training, in rows of `row` tokens."""

    def layers(self, shape: ModelShape, method: Method) -> int:  # noqa: ARG002
        """Of which a pass keeps activations."""
        return shape.layers

    def merging(self, shape: ModelShape, method: Method) -> int:  # noqa: ARG002
        """Bytes of the largest matrix while it is merged (`output.merged`)."""
        return 0


def block_bytes(
    shape: ModelShape, kept: Kept, width: int, *, trains: bool, row: int = 0, autocast: bool = False
) -> int:
    """Bytes that one decoder block keeps of a token. `width`: of what is computed; `trains`: weights of the model
    itself train; with `autocast` norms are fp32, and every matrix keeps a copy of its input of its own."""
    h, k, f = shape.hidden, shape.key_value, shape.intermediate
    q = shape.query or h
    if autocast:
        norms = 2 * (4 + 4) * h + 5 * h * width
    else:
        norms = 2 * 4 * h + (2 * h * width if trains else 0) + (kept.attention + kept.mlp) * h * width
    apart = 2 * q * width + row * (4 if autocast else width) if row else 2 * k * width
    chosen = shape.passed * (1 + trains) * h * width
    return norms + 2 * q * width + apart + (3 + kept.mlp) * f * width + chosen


def attention_operations(shape: ModelShape, row: int) -> float:
    """Of a token's attention, forward and backward: 12·L·h·row/2."""
    return 12 * shape.layers * shape.hidden * row / 2


def beside_a_frozen_base(shape: ModelShape, trained: int, *, row: int, layers: int) -> float:
    """Operations for a token where a frozen model computes forward and backward, and `trained` additional parameters
    train; with fewer `layers` than all, those below are only passed forward."""
    n, attention = shape.active, attention_operations(shape, row)
    if layers < shape.layers and shape.blocks:
        above = shape.active_in_last(layers) + shape.vocabulary * shape.hidden
        attention *= (1 + 2 * layers / shape.layers) / 3
        return 2 * n + 2 * above + 6 * trained + attention
    return 4 * n + 6 * trained + attention
