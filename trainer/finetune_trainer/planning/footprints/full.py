"""Full fine-tuning: everything trains."""

from __future__ import annotations

from finetune_api.methods import Method
from finetune_trainer.planning.model import ModelShape

from .base import Footprint, Kept, attention_operations


class Full(Footprint):
    def trained(self, shape: ModelShape, method: Method) -> int:  # noqa: ARG002
        return shape.language

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:  # noqa: ARG002
        return Kept(attention=True, mlp=True, added=0)

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        return 0

    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:  # noqa: ARG002
        return 6 * shape.active + attention_operations(shape, row)


FOOTPRINT = Full()
