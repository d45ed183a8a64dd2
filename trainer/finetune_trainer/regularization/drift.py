"""Activation drift: a pull to the results that the adapted matrices have on general text.

    added to the mean loss per token   ½ · strength · mean over matrices of E‖ΔW x‖² / E‖W x‖²

x are inputs of a matrix on general text, ΔW = s·B·A its update and W x what it makes of them without the update: 0.01
is a change by a tenth of their size. So a strength means the same for any model, and a change that general text does
not see is free. No matrix is made: with sampled inputs X (tokens, in) and Z = XAᵀ

    ‖XAᵀBᵀ‖² = tr(BᵀB · ZᵀZ)        ∂/∂B = 2·B·ZᵀZ        ∂/∂A = 2·BᵀB·ZᵀX

It is EWC with a Fisher matrix in Kronecker form, C ⊗ G with C = E[xxᵀ], where G, of the gradients of the results, is
taken to be the identity (K-FAC: Martens and Grosse 2015, arXiv 1503.05671).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from finetune_trainer.methods.base import Product

from .l2sp import gradient_of, total


@dataclass(frozen=True)
class Seen:
    """What general text is for one matrix."""

    inputs: Tensor
    """(tokens, in); matrices with the same inputs share it."""
    size: Tensor
    """(): mean squared norm of the results without the update."""


@dataclass(frozen=True)
class ActivationDrift:
    strength: float
    matrices: int
    """Of the model; `held` are those of which this rank adds the term."""
    held: Sequence[tuple[Product, Seen]]
    name: ClassVar[str] = "drift"

    @torch.no_grad()
    def value(self) -> Tensor:
        parts = []
        for each, seen in self.held:
            z = seen.inputs.to(each.a.dtype) @ each.a.T
            parts.append(self._factor(each, seen) * ((each.b.T @ each.b) * (z.T @ z)).sum())
        return 0.5 * self.strength * total(parts)

    @torch.no_grad()
    def add_gradients(self, times: float) -> None:
        for each, seen in self.held:
            inputs = seen.inputs.to(each.a.dtype)
            z = inputs @ each.a.T
            factor = times * self.strength * self._factor(each, seen)
            gradient_of(each.b).add_(factor * (each.b @ (z.T @ z)))
            gradient_of(each.a).add_(factor * (each.b.T @ each.b) @ (z.T @ inputs))

    def _factor(self, each: Product, seen: Seen) -> Tensor:
        """(): from the squared norm of all results that change to the part of the mean."""
        return each.scale**2 / (self.matrices * len(seen.inputs) * seen.size.clamp_min(1e-30))


@contextmanager
def watched(
    products: Sequence[Product], wanted: Callable[[], Tensor], note: Callable[[int, Tensor, Tensor], None]
) -> Iterator[None]:
    """Inside, `note(number of the matrix, inputs (wanted, in), squared norms of its results (wanted,))` of each pass.
    wanted: places of the tokens among all of the pass. A network whose updates are zero."""

    def hook(number: int) -> Callable[..., None]:
        def seen(_module: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
            chosen = wanted()
            inputs = given[0].flatten(0, -2).index_select(0, chosen).float()
            note(number, inputs, result.flatten(0, -2).index_select(0, chosen).float().square().sum(dim=1))

        return seen

    handles = [each.layer.register_forward_hook(hook(number)) for number, each in enumerate(products)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shared(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Equal ones as one tensor, without their copies: q, k and v read the same."""
    found: dict[tuple[int, float], list[Tensor]] = {}
    out = []
    for each in inputs:
        same = found.setdefault((each.shape[1], float(each.sum(dtype=torch.float64))), [])
        known = next((other for other in same if torch.equal(other, each)), None)
        if known is None:
            same.append(each)
        out.append(each if known is None else known)
    return out
