"""DoRA: LoRA and a magnitude for each output. PEFT's layers run: they keep both results, an fp32 copy of each input on
a bf16 base, and form the updated matrix."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.methods import Method
from finetune_trainer.planning.model import ModelShape

from .base import Kept
from .lora import LowRank, adapted, largest

SLOWER = 1.26
"""PEFT's comparison on Llama-3.2-3B: 1190 s against LoRA's 942."""


class Dora(LowRank):
    fused = False

    def trained(self, shape: ModelShape, method: Method) -> int:
        return super().trained(shape, method) + sum(d_out for d_out, _ in adapted(shape, method))

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:
        plain = super().kept(shape, method, width, row=row)
        results = sum((width + 4) * d_out for d_out, _ in adapted(shape, method))
        return replace(plain, added=plain.added + results)

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        """A matrix is formed with its update in fp32."""
        elements, inputs = largest(shape)
        return 4 * (3 * elements + inputs**2)

    def operations(self, shape: ModelShape, method: Method, *, row: int) -> float:
        return super().operations(shape, method, row=row) * SLOWER


FOOTPRINT = Dora()
