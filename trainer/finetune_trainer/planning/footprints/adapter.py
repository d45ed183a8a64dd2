"""Bottlenecks: 2hm + m + h parameters each. One keeps its input twice and its inside twice."""

from __future__ import annotations

from finetune_api.methods import Adapter, Method
from finetune_trainer.planning.model import ModelShape

from .base import Footprint, Kept, beside_a_frozen_base


class Bottlenecks(Footprint):
    def trained(self, shape: ModelShape, method: Method) -> int:
        m = (method.adapter or Adapter()).bottleneck
        return _count(shape, method) * (2 * shape.hidden * m + m + shape.hidden)

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:  # noqa: ARG002
        bottleneck = (method.adapter or Adapter()).bottleneck
        added = _count(shape, method) * 2 * (shape.hidden + bottleneck) * width
        return Kept(attention=False, mlp=False, added=added)

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        return 0

    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:
        return beside_a_frozen_base(shape, self.trained(shape, method), row=row, layers=shape.layers)


def _count(shape: ModelShape, method: Method) -> int:
    return shape.layers * (2 if (method.adapter or Adapter()).placement == "houlsby" else 1)


FOOTPRINT = Bottlenecks()
