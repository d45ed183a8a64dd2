"""A linear layer with its low-rank update as one autograd function.

PEFT computes `base(x) + B(A(x)) * scale` as five operations with three results of the layer's full output size; here
the update is added in place (`addmm_`), forward and backward, which saves their memory and the time to fill it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LowRankLinear(torch.autograd.Function):
    """x: (tokens, in), weight: (out, in) frozen, bias: (out,) frozen or None, a: (rank, in), b: (out, rank)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        narrow = x @ a.to(x.dtype).T
        y = F.linear(x, weight, bias)
        y.addmm_(narrow, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, weight, a, b, narrow)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, narrow = ctx.saved_tensors
        g = upstream[0]
        g_narrow = (g @ b.to(g.dtype)).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = g @ weight
            grad_x.addmm_(g_narrow, a.to(g.dtype))
        grad_a = (g_narrow.T @ x).to(a.dtype)
        grad_b = (narrow.T @ g).T.to(b.dtype).mul(ctx.scale)  # this way round the product is twice as fast
        return grad_x, None, None, grad_a, grad_b, None


class FusedLinear(lora.Linear):  # type: ignore[misc]  # PEFT ships no types
    """PEFT's layer with another forward. Whatever the fused form does not cover goes PEFT's way."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        here = [name for name in self.active_adapters if name in self.lora_A]
        if args or kwargs or self.disable_adapters or self.merged or not here:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        base = self.base_layer
        flat = x.reshape(-1, x.shape[-1])
        a, b, scale = self._factors(here)
        if torch.compiler.is_compiling():  # which fuses these by itself, and keeps no graph with functions of others
            a, b = a.to(x.dtype), b.to(x.dtype)
            whole = F.linear(flat, base.weight, base.bias)
            return torch.addmm(whole, flat @ a.T, b.T, alpha=scale).view(*x.shape[:-1], -1)
        out = _LowRankLinear.apply(flat, base.weight, base.bias, a, b, scale)  # type: ignore[no-untyped-call]
        return cast(Tensor, out).view(*x.shape[:-1], -1)

    def _factors(self, adapters: list[str]) -> tuple[Tensor, Tensor, float]:
        """(A, B, scale) of the sum of their updates; of several one below the other, as they are written."""
        *others, last = [name for name in adapters if self.scaling[name]] or adapters[-1:]
        a, b, scale = self.lora_A[last].weight, self.lora_B[last].weight, self.scaling[last]
        for name in others:
            factor = self.scaling[name] / scale
            a = torch.cat([self.lora_A[name].weight, a])
            b = torch.cat([self.lora_B[name].weight * factor if factor != 1 else self.lora_B[name].weight, b], dim=1)
        return a, b, scale


def fuse(network: nn.Module) -> int:
    """Give every plain LoRA layer of `network` the fused forward; answers how many there are. Dropout, bias, variants
    and layers that are not a plain `nn.Linear` keep PEFT's."""
    fused = 0
    for module in network.modules():
        if type(module) is lora.Linear and _plain(module):
            module.__class__ = FusedLinear
            fused += 1
    return fused


def _plain(module: lora.Linear) -> bool:
    return (
        type(module.base_layer) is nn.Linear
        and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values())
        and not module.lora_variant
        and not any(module.lora_bias.values())
    )
