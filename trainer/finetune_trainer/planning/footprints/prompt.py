"""Prompt tuning: n·h parameters of n virtual tokens; the model passes their gradients on and keeps nothing more."""

from __future__ import annotations

from finetune_api.methods import Method
from finetune_trainer.planning.model import ModelShape

from .base import Footprint, Kept, beside_a_frozen_base


class LearnedInput(Footprint):
    def trained(self, shape: ModelShape, method: Method) -> int:
        return method.virtual_tokens * shape.hidden

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:  # noqa: ARG002
        return Kept(attention=False, mlp=False, added=0)

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        return 0

    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:
        return beside_a_frozen_base(shape, self.trained(shape, method), row=row, layers=shape.layers)


FOOTPRINT = LearnedInput()
