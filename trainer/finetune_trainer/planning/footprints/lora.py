"""LoRA: r·(d_in + d_out) parameters for each adapted matrix. The fused layers share their input with the base; with
dropout PEFT's own layers run."""

from __future__ import annotations

from finetune_api.methods import Lora, Method
from finetune_trainer.planning.model import ModelShape

from .base import Footprint, Kept, beside_a_frozen_base


class LowRank(Footprint):
    fused = True
    """Whether our layers run, which keep no fp32 copy of their input on a bf16 base."""

    def trained(self, shape: ModelShape, method: Method) -> int:
        lora = settings_of(method)
        return sum(lora.rank * (d_out + d_in) for d_out, d_in in adapted(shape, method))

    def layers(self, shape: ModelShape, method: Method) -> int:
        return min(settings_of(method).layers or shape.layers, shape.layers)

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:  # noqa: ARG002
        lora, matrices = settings_of(method), adapted(shape, method)
        added = lora.rank * width * len(matrices)  # what lies between the two matrices
        if lora.dropout > 0:  # PEFT keeps what is left of each input, the mask, and in bf16 more
            added += int(sum((5 if width == 4 else 6.5) * d_in for _, d_in in matrices))
        elif width == 2 and not self.fused:
            added += sum(4 * d_in for _, d_in in matrices)
        return Kept(
            attention=lora.targets in ("all-linear", "attention"),
            mlp=lora.targets in ("all-linear", "mlp") and bool(shape.adapted("mlp")),
            added=added,
        )

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        return 0

    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:
        layers = self.layers(shape, method)
        return beside_a_frozen_base(shape, self.trained(shape, method), row=row, layers=layers)

    def merging(self, shape: ModelShape, method: Method) -> int:
        """In fp32, and twice as it is stored (at most fp32)."""
        return 12 * max((a * b for a, b in adapted(shape, method)), default=0)


def settings_of(method: Method) -> Lora:
    return method.low_rank or Lora()


def adapted(shape: ModelShape, method: Method) -> list[tuple[int, int]]:
    """(out, in) of each adapted matrix."""
    lora = settings_of(method)
    return shape.adapted(lora.targets, lora.layers)


def largest(shape: ModelShape) -> tuple[int, int]:
    """(elements, inputs) of the largest matrix of the blocks."""
    return max(((a * b, b) for a, b in shape.linears.values()), default=(0, 0))


FOOTPRINT = LowRank()
