"""QLoRA: LoRA on a base whose linear layers are kept in 4 bits (NF4 with double quantisation, Dettmers et al. 2023).

The matrices of the blocks take 4.127 bits a weight instead of 16; embeddings, head and norms stay as they are. Products
are computed in the dtype that the base was loaded in, from a weight that is unpacked for the moment. What is written is
a plain LoRA adapter; its scores were measured on the base in 4 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.decoder_blocks import Layers, decoder_layers

from .base import Base
from .called import is_called
from .lora import Lora, LoraAttached
from .needs import check_four_bits, check_packed

_LARGEST_ERROR = 0.12
"""Of normally distributed weights, relative to them. NF4 in blocks of 64 has 0.092."""


@dataclass(frozen=True)
class QLora(Lora):
    name: ClassVar[str] = "qlora"

    def quantise(self, network: nn.Module, *, device: torch.device) -> None:
        """The linear layers of the blocks, one after another, each to `device`: it never holds them as they were. Then
        what is left of the network. Nothing is done where ranks share weights, which were loaded so."""
        if getattr(network, "is_loaded_in_4bit", False):
            return
        for name in packed_layers(network, device=device):
            network.set_submodule(name, _in_four_bits(cast(nn.Linear, network.get_submodule(name)), device))
        cast(Any, network).is_loaded_in_4bit = True  # by which PEFT chooses its layers
        network.to(device)

    def packed_layers(self, network: nn.Module, *, device: torch.device | None) -> list[str]:
        return packed_layers(network, device=device)

    def on_paper(self) -> Lora:
        return Lora(self.settings)

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> LoraAttached:
        self.quantise(network, device=next(network.parameters()).device)
        return super().attach(network, seed=seed, base=base)

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        self.quantise(network, device=next(network.parameters()).device)
        return super().load(network, folder)


def packed_layers(network: nn.Module, *, device: torch.device | None) -> list[str]:
    """The linear layers of the blocks. ModelUnsupported where 4 bits of them would save little, or are not what comes
    back on this device, None: on one that is not here; `network` itself may be on the meta device."""
    check_four_bits()
    layers = decoder_layers(network)
    inside = (name for name, module in network.named_modules() if type(module) is nn.Linear and layers.index(name) >= 0)
    linear = [name for name in inside if is_called(network, name)]
    if not linear:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{type(network).__name__} keeps its weights in other layers than torch.nn.Linear",
            "Use method.type: lora.",
        )
    _check_share(network, layers, linear)
    if device is not None:
        for width in sorted({cast(nn.Linear, network.get_submodule(name)).in_features for name in linear}):
            _check_kernel(width, device)
    return linear


def _check_share(network: nn.Module, layers: Layers, linear: list[str]) -> None:
    """Experts are in layers of their own kind, and would stay as they are."""
    whole = sum(p.numel() for name, p in network.named_parameters() if layers.index(name) >= 0 and p.ndim > 1)
    packed = sum(cast(nn.Linear, network.get_submodule(name)).weight.numel() for name in linear)
    check_packed(f"{type(network).__name__}'s blocks", packed=packed, whole=whole)


def _check_kernel(width: int, device: torch.device) -> None:
    """Whether a matrix comes back as NF4 keeps it. The CPU kernel of bitsandbytes 0.50 takes the scales of other blocks
    where row lengths are not a multiple of 64, without a warning: the error is then four times as large."""
    import bitsandbytes.functional as bnb

    matrix = torch.randn(64, width, generator=torch.Generator().manual_seed(0)).to(device)
    packed, state = bnb.quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
    error = torch.linalg.norm(bnb.dequantize_4bit(packed, state) - matrix) / torch.linalg.norm(matrix)
    if float(error) > _LARGEST_ERROR:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"bitsandbytes cannot keep rows of {width} weights in 4 bits on this {device.type}: the unpacked weights "
            "differ",
            "Use method.type: lora, or a GPU.",
        )


def _in_four_bits(linear: nn.Linear, device: torch.device) -> nn.Module:
    import bitsandbytes as bnb

    made = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        device="meta",
    )
    made.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
    )
    made.bias = linear.bias
    # On CPUs with bf16 instructions bitsandbytes repacks the weights in the first evaluation, for a kernel without a
    # backward that computes in bf16: training after it would go on without gradients, and not say so.
    made.support_avx512bf16_for_cpu = False
    return cast(nn.Module, made.to(device))
