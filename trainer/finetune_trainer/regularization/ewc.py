"""EWC: a pull to the weights that training starts from, stronger where general text depends on them (Kirkpatrick et al.
2017, arXiv 1612.00796).

    added to the mean loss per token   ½ · strength · Σ_i F̂_i Δ_i²

F̂ is the diagonal of the Fisher information (`fisher`), divided by its mean: so a strength means the same for any model,
and with F̂ = 1 everywhere it is L2-SP. Δ is as in `l2sp`: θ − θ₀ of weights that train themselves, s·B·A of low-rank
updates. There is no shortcut for the norm here: each matrix s·B·A is made twice in a step, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finetune_trainer.methods.base import Product

from .l2sp import gradient_of, total


def normalised(diagonal: Sequence[Tensor]) -> list[Tensor]:
    """With mean 1 over all weights, in place. Ones where it is 0 everywhere."""
    count = sum(each.numel() for each in diagonal)
    mean = sum(float(each.sum(dtype=torch.float64)) for each in diagonal) / max(1, count)
    return [each.div_(mean) if mean else each.fill_(1.0) for each in diagonal]


@dataclass(frozen=True)
class WeightedDistance:
    strength: float
    held: Sequence[tuple[nn.Parameter, Tensor, Tensor]]
    """(what trains, its start, its importance), of which this rank adds the term."""
    name: ClassVar[str] = "ewc"

    @classmethod
    def of(cls, parameters: Sequence[nn.Parameter], importance: Sequence[Tensor], strength: float) -> WeightedDistance:
        """From the weights as they are now."""
        pairs = zip(parameters, importance, strict=True)
        return cls(strength, [(each, each.detach().clone(), weight) for each, weight in pairs])

    @torch.no_grad()
    def value(self) -> Tensor:
        return 0.5 * self.strength * total([(f * (each - start).square()).sum() for each, start, f in self.held])

    @torch.no_grad()
    def add_gradients(self, times: float) -> None:
        for each, start, importance in self.held:
            gradient_of(each).addcmul_(importance, each - start, value=times * self.strength)


@dataclass(frozen=True)
class WeightedProducts:
    strength: float
    held: Sequence[tuple[Product, Tensor]]
    """(update, importance of its matrix), of which this rank adds the term."""
    name: ClassVar[str] = "ewc"

    @torch.no_grad()
    def value(self) -> Tensor:
        return 0.5 * self.strength * total([(f * _matrix(each).square_()).sum() for each, f in self.held])

    @torch.no_grad()
    def add_gradients(self, times: float) -> None:
        """With G = F̂ ⊙ sBA: ∂/∂B = s·G·Aᵀ, ∂/∂A = s·Bᵀ·G."""
        for each, importance in self.held:
            upstream = _matrix(each).mul_(importance)
            factor = times * self.strength * each.scale
            into_a, into_b = gradient_of(each.a), gradient_of(each.b)
            into_b.addmm_(upstream, each.a.T, alpha=factor)
            into_a.addmm_(each.b.T, upstream, alpha=factor)


def _matrix(product: Product) -> Tensor:
    """(out, in)"""
    return (product.b @ product.a).mul_(product.scale)
