"""DoRA: LoRA that trains a weight's magnitude, one number for each output, apart from its direction (Liu et al. 2024).

The forward is PEFT's: it needs the norms of the updated matrices at every step, which the fused layers do not compute.
Servers refuse the format, so an artifact is for transformers with PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn

from .base import Base
from .lora import Lora, LoraAttached


@dataclass(frozen=True)
class Dora(Lora):
    name: ClassVar[str] = "dora"
    options: ClassVar[Mapping[str, Any]] = {"use_dora": True}

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> LoraAttached:
        attached = super().attach(network, seed=seed, base=base)
        _measure_again(network)
        return attached


@torch.no_grad()
def _measure_again(network: nn.Module) -> None:
    """Magnitudes as the forward measures them, in fp32. PEFT's own start is measured in the dtype of the base and then
    widened: on a base in bf16 a fresh DoRA would not be the base model."""
    from peft.utils.integrations import dequantize_module_weight

    for module in network.modules():
        layer = cast(Any, module)
        for name, magnitude in getattr(module, "lora_magnitude_vector", {}).items():
            update = magnitude.get_lora_weight(layer.lora_A[name], layer.lora_B[name])
            weight = dequantize_module_weight(layer.get_base_layer()).to(update.dtype)
            magnitude.weight.data = magnitude.get_weight_norm(weight, update, layer.scaling[name])
