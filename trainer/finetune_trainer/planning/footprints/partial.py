"""Partial fine-tuning: of the layers that train alone. How many `auto` comes to is measured in a pass through all."""

from __future__ import annotations

from finetune_api.methods import Method, Partial
from finetune_trainer.planning.model import ModelShape

from .base import Footprint, Kept, attention_operations


class Blocks(Footprint):
    def trained(self, shape: ModelShape, method: Method) -> int:
        return sum(shape.blocks[-trained_layers(shape, method) :])

    def layers(self, shape: ModelShape, method: Method) -> int:
        return shape.layers if method.is_open else trained_layers(shape, method)

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:  # noqa: ARG002
        return Kept(attention=True, mlp=True, added=0)

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        return 0

    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:
        head, last = shape.vocabulary * shape.hidden, shape.active_in_last(trained_layers(shape, method))
        attention = attention_operations(shape, row)
        passed = self.layers(shape, method)
        return 2 * shape.active + 4 * last + 2 * head + attention * (1 + 2 * passed / shape.layers) / 3


def trained_layers(shape: ModelShape, method: Method) -> int:
    """For auto a quarter, which gave nine tenths of full quality on BERT (1911.03090)."""
    layers = (method.partial or Partial()).layers
    return min(layers, shape.layers) if isinstance(layers, int) else -(-shape.layers // 4)


FOOTPRINT = Blocks()
