"""IA3: a factor for each key, each value and each inner feature of a feed-forward network. PEFT's layers keep what they
scale: keys and values as they were computed, inner features in fp32."""

from __future__ import annotations

from finetune_api.methods import Method
from finetune_trainer.methods.halves import ends_feed_forward, makes_keys_or_values
from finetune_trainer.planning.model import ModelShape

from .base import Footprint, Kept, beside_a_frozen_base


class Factors(Footprint):
    def trained(self, shape: ModelShape, method: Method) -> int:  # noqa: ARG002
        return _keys_and_values(shape) + _inner(shape)

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:  # noqa: ARG002
        return Kept(attention=False, mlp=False, added=width * _keys_and_values(shape) + 4 * _inner(shape))

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        return 0

    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:
        return beside_a_frozen_base(shape, self.trained(shape, method), row=row, layers=shape.layers)

    def merging(self, shape: ModelShape, method: Method) -> int:  # noqa: ARG002
        """In fp32 before and after, and as it is stored (at most fp32)."""
        scaled = (a * b for name, (a, b) in shape.linears.items() if _path(name))
        return 12 * max(scaled, default=0)


def _path(name: str) -> str:
    """Of a matrix that is scaled, the name of its layer; empty for others."""
    path = name.removesuffix(".weight")
    return path if makes_keys_or_values(path) or ends_feed_forward(path) else ""


def _keys_and_values(shape: ModelShape) -> int:
    return sum(out for name, (out, _) in shape.linears.items() if makes_keys_or_values(name.removesuffix(".weight")))


def _inner(shape: ModelShape) -> int:
    return sum(inner for name, (_, inner) in shape.linears.items() if ends_feed_forward(name.removesuffix(".weight")))


FOOTPRINT = Factors()
