"""QLoRA: LoRA on matrices in 4 bits, of which one is unpacked at a time; PEFT's layers run."""

from __future__ import annotations

from finetune_api.methods import Method
from finetune_trainer.planning.model import ModelShape

from .lora import LowRank, largest


class QLora(LowRank):
    fused = False

    def workspace(self, shape: ModelShape, method: Method, width: int) -> int:  # noqa: ARG002
        return largest(shape)[0] * width


FOOTPRINT = QLora()
