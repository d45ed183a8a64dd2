"""L2-SP: a pull to the weights that training starts from (Li, Grandvalet and Davoine 2018, arXiv 1802.01483).

    added to the mean loss per token   ½ · strength · ‖Δ‖²

    weights that train themselves      Δ = θ − θ₀, of which a copy is kept
    low-rank updates                   Δ = s·B·A, the change of the matrix, whichever factors make it. No copy is kept
                                       and no matrix is made: ‖B·A‖² = tr((BᵀB)(AAᵀ)), products of rank × rank

The term depends on the weights alone, so it is added once for each step and not for each micro-batch, and in a gang
once for each weight: by rank 0 where all ranks hold the weight, by each rank for its own shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from finetune_trainer.methods.base import Product
from finetune_trainer.parallel.base import Place


@dataclass(frozen=True)
class DistanceOfWeights:
    strength: float
    held: Sequence[tuple[nn.Parameter, Tensor, float]]
    """(what trains, its start, which part of the term is this rank's): start and part are those of the rank's shard."""
    name: ClassVar[str] = "l2sp"

    @classmethod
    def of(cls, parameters: Iterable[nn.Parameter], *, strength: float, place: Place) -> DistanceOfWeights:
        """From the weights as they are now."""
        held = [(each, _own(each).detach().clone(), part) for each in parameters if (part := _part(each, place))]
        return cls(strength, held)

    @torch.no_grad()
    def value(self) -> Tensor:
        """This rank's part of the term: ()."""
        parts = [part * (_own(each) - start).square().sum() for each, start, part in self.held]
        return 0.5 * self.strength * total(parts)

    @torch.no_grad()
    def add_gradients(self, times: float) -> None:
        for each, start, _ in self.held:
            gradient_of(each).add_(_own(each) - start, alpha=times * self.strength)


@dataclass(frozen=True)
class DistanceOfProducts:
    strength: float
    products: Sequence[Product]
    """Those of which this rank adds the term."""
    name: ClassVar[str] = "l2sp"

    @classmethod
    def of(cls, products: Iterable[Product], *, strength: float, place: Place) -> DistanceOfProducts:
        """Every rank holds all factors, whatever the strategy."""
        return cls(strength, tuple(products) if place.first else ())

    @torch.no_grad()
    def value(self) -> Tensor:
        parts = [each.scale**2 * ((each.b.T @ each.b) * (each.a @ each.a.T)).sum() for each in self.products]
        return 0.5 * self.strength * total(parts)

    @torch.no_grad()
    def add_gradients(self, times: float) -> None:
        """∂/∂B = s²·B·(AAᵀ), ∂/∂A = s²·(BᵀB)·A."""
        for each in self.products:
            factor = times * self.strength * each.scale**2
            gradient_of(each.b).addmm_(each.b, each.a @ each.a.T, alpha=factor)
            gradient_of(each.a).addmm_(each.b.T @ each.b, each.a, alpha=factor)


def _part(parameter: nn.Parameter, place: Place) -> float:
    """Of the term of one weight, what this rank counts. Replicas of a shard count the same, and each adds its whole
    gradient, since their gradients are already summed."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        return mesh.size(mesh.ndim - 1) / mesh.size()
    return float(place.first)


def _own(parameter: nn.Parameter) -> Tensor:
    """This rank's shard, or the whole."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Of what trains, this rank's shard or the whole, to be added to."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    gradient = parameter.grad
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def total(parts: list[Tensor]) -> Tensor:
    """(): the sum; 0 of nothing."""
    return torch.stack(parts).sum() if parts else torch.zeros(())
