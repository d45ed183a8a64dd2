"""A probe makes no steps: one forward pass, and the states of six layers."""

from __future__ import annotations

from finetune_api.methods import Method
from finetune_trainer.planning.model import ModelShape

from .base import Footprint, Kept, attention_operations, block_bytes

STATES = 6
"""Layers whose states are kept, by default."""


class Forward(Footprint):
    def trained(self, shape: ModelShape, method: Method) -> int:  # noqa: ARG002
        return 0

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:  # noqa: ARG002
        """What one block holds at once, and the states."""
        everything = Kept(attention=True, mlp=True, added=0)
        block = block_bytes(shape, everything, width, trains=True, row=row)
        return Kept(attention=False, mlp=False, added=0, forward=block + 4 * STATES * shape.hidden)

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        return 0

    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:  # noqa: ARG002
        return 2 * shape.active + attention_operations(shape, row) / 3


FOOTPRINT = Forward()
