"""How much a model's answers depend on each weight: the diagonal of the Fisher information.

    F_i = E over contexts x, and answers y drawn from the model itself, of (∂ log p(y | x) / ∂θ_i)²

Two shortcuts give something else. Squares of a batch's mean gradient are too small by about the size of the batch. The
right answers in place of drawn ones measure how wrong the model is (the empirical Fisher). Both change what EWC does
(van de Ven 2025, arXiv 2502.11756). So labels are drawn at every position of a document, and a document's gradient is
squared by itself: its labels are independent of each other, so the expected square of their sum is the sum of the
expected squares, and a division by the number of tokens leaves the mean over tokens.

    Parameters   of what trains itself
    Matrices     of matrices with a low-rank update, as if they trained, and not of the factors of the update
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune_trainer.methods.base import Product
from finetune_trainer.parallel.base import Gang

DOCUMENTS = 200
"""That F is measured on: it is a mean, and EWC's authors and users take 100 to 500."""

Drawn = Callable[[], tuple[Tensor, int]]
"""(the summed nats of labels drawn for a document, with gradients, and their number)."""


class Weights(Protocol):
    """The weights that F is measured of."""

    @property
    def shapes(self) -> list[tuple[int, ...]]: ...

    def gradients(self, drawn: Drawn) -> tuple[list[Tensor | None], int]:
        """(of each, None where nothing depends on it; the number of labels)."""


@dataclass(frozen=True)
class Parameters:
    parameters: Sequence[nn.Parameter]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(each.shape) for each in self.parameters]

    def gradients(self, drawn: Drawn) -> tuple[list[Tensor | None], int]:
        nats, count = drawn()
        return list(torch.autograd.grad(nats, list(self.parameters), allow_unused=True)), count


@dataclass(frozen=True)
class Matrices:
    products: Sequence[Product]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [(len(each.b), each.a.shape[1]) for each in self.products]

    def gradients(self, drawn: Drawn) -> tuple[list[Tensor | None], int]:
        """A matrix's gradient is that of its layer's results times what went in: the matrix itself need not train."""
        calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.products]
        with _watched([each.layer for each in self.products], calls):
            nats, count = drawn()
        results = [result for of_layer in calls for _, result in of_layer]
        upstream = iter(torch.autograd.grad(nats, results, allow_unused=True))
        return [_summed([(given, next(upstream)) for given, _ in of_layer]) for of_layer in calls], count


def diagonal(weights: Weights, documents: Iterable[Drawn], gang: Gang, device: torch.device) -> list[Tensor]:
    """F of each, (the shape of the weight), in fp32. Collective: `documents` are this rank's part of all."""
    sums, tokens = [torch.zeros(shape, dtype=torch.float32, device=device) for shape in weights.shapes], 0
    for drawn in documents:
        gradients, count = weights.gradients(drawn)
        tokens += count
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient.float(), gradient.float())
    gang.sum_gradients([total.view(-1) for total in sums])
    [everywhere] = gang.sum_counters([tokens])
    return [total.div_(max(1.0, everywhere)) for total in sums]


@contextmanager
def _watched(layers: Sequence[nn.Module], calls: list[list[tuple[Tensor, Tensor]]]) -> Iterator[None]:
    """Inside, each call of a layer is noted: what goes in, and what comes out."""

    def hook(into: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
        def note(_module: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
            into.append((given[0].detach(), result))

        return note

    handles = [layer.register_forward_hook(hook(into)) for layer, into in zip(layers, calls, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summed(calls: list[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """(out, in): over all calls of a layer, (…, in) and (…, out)."""
    parts = [
        upstream.flatten(0, -2).float().T @ given.flatten(0, -2).float()
        for given, upstream in calls
        if upstream is not None
    ]
    return torch.stack(parts).sum(0) if len(parts) > 1 else next(iter(parts), None)
