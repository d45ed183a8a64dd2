"""DoRA: LoRA that trains a weight's magnitude, one number for each output, apart from its direction (Liu et al. 2024).

The forward is PEFT's: it needs the norms of the updated matrices at every step, which the fused layers do not compute.
Servers refuse the format, so an artifact is for transformers with PEFT.

On weights in shards (fsdp) a forward finds its layer whole. Only the start has to bring weights together itself, one
matrix at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .base import Base
from .lean import lean_peft
from .lora import Lora, LoraAttached


@dataclass(frozen=True)
class Dora(Lora):
    name: ClassVar[str] = "dora"
    options: ClassVar[Mapping[str, Any]] = {"use_dora": True}

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> LoraAttached:
        with _unmeasured():
            attached = super().attach(network, seed=seed, base=base)
        _measure(network)
        return attached

    def attached(self, made: LoraAttached) -> LoraAttached:
        """A smaller scale would not keep the magnitudes that were trained with it."""
        return made


@contextmanager
def _unmeasured() -> Iterator[None]:
    """PEFT's own start is measured in the dtype of the base and then widened: on a base in bf16 a fresh DoRA would not
    be the base model. And it cannot read weights in shards."""
    with lean_peft():
        from peft.tuners.lora.dora import DoraLinearLayer

    def place(layer: Any, *, lora_B: Tensor, **_: Any) -> None:
        layer.weight = nn.Parameter(torch.ones_like(lora_B[:, 0]))

    measured = DoraLinearLayer.update_layer
    DoraLinearLayer.update_layer = place
    try:
        yield
    finally:
        DoraLinearLayer.update_layer = measured


@torch.no_grad()
def _measure(network: nn.Module) -> None:
    """Magnitudes as the forward measures them, in fp32. Collective where weights are in shards."""
    from peft.utils.integrations import dequantize_module_weight

    for module in network.modules():
        layer = cast(Any, module)
        for name, magnitude in getattr(module, "lora_magnitude_vector", {}).items():
            update = magnitude.get_lora_weight(layer.lora_A[name], layer.lora_B[name])
            weight = dequantize_module_weight(layer.get_base_layer())
            whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
            magnitude.weight.data = magnitude.get_weight_norm(whole.to(update.dtype), update, layer.scaling[name])
