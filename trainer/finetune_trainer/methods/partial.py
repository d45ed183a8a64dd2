"""Partial fine-tuning: the last decoder layers train, everything below and around them stays as it is.

Nothing below the cut asks for gradients, so autograd records nothing there: neither activations nor a backward. How
many layers is a setting, or comes from the data: `relative_gradients` measures how strongly each layer would move, and
`last_layers` takes the fewest that hold most of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune_api.methods import Partial as Settings
from finetune_trainer.decoder_blocks import decoder_layers

from .base import Base
from .full import Full, FullAttached
from .needs import check_layers
from .source import Source

SHARE = 0.8
"""Of the squared relative gradients, which the trained layers must hold."""


def partial(settings: Settings) -> Partial:
    """ValueError for auto: what it comes to is measured before a method is attached, see train.choose."""
    layers = settings.layers
    if not isinstance(layers, int):
        raise ValueError("method.partial.layers is still auto")
    return Partial(layers)


@dataclass(frozen=True)
class Partial:
    layers: int

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> FullAttached:  # noqa: ARG002
        layers = decoder_layers(network)
        check_layers(self.layers, layers.count)
        lowest = layers.count - self.layers
        network.requires_grad_(False)
        trainable = {name: p for name, p in network.named_parameters() if layers.index(name) >= lowest}
        for parameter in trainable.values():
            parameter.requires_grad_(True)
        return FullAttached(network, trainable, lowest, stored=base.dtype, source=Source.of(base))

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        return Full().load(network, folder)


def relative_gradients(network: nn.Module, losses: Iterable[Callable[[], Tensor]]) -> list[float]:
    """‖gradient‖ / ‖weights‖ (Frobenius, over all weights of a layer) for each decoder layer, averaged over `losses`.

    Each gradient is let go as soon as its norm is known: memory for one weight's gradient, not for all.
    """
    layers = decoder_layers(network)
    inside = {name: p for name, p in network.named_parameters() if layers.index(name) >= 0}
    weights = [0.0] * layers.count
    for name, parameter in inside.items():
        weights[layers.index(name)] += float(parameter.detach().float().square().sum())
    relative = [0.0] * layers.count
    count = 0
    network.requires_grad_(False)
    for loss in losses:
        squares = [0.0] * layers.count
        with _watched(inside, lambda name, square, into=squares: _add(into, layers.index(name), square)):  # type: ignore[misc]
            loss().backward()  # type: ignore[no-untyped-call]
        relative = [r + math.sqrt(s / w) if w else r for r, s, w in zip(relative, squares, weights, strict=True)]
        count += 1
    return [r / max(1, count) for r in relative]


def last_layers(relative: Sequence[float], *, share: float = SHARE) -> int:
    """The smallest number of last layers that hold `share` of the squares; all where nothing can be told apart.

    `[1, 1, 2, 4]` → squares `1 1 4 16` of 22, the last holds 0.73 and the last two 0.91 → 2.
    """
    squares = [value * value for value in relative]
    total = sum(squares)
    if not math.isfinite(total) or total == 0:
        return len(squares)
    held = 0.0
    for count, square in enumerate(reversed(squares), start=1):
        held += square
        if held >= share * total:
            return count
    return len(squares)


def _add(into: list[float], index: int, value: float) -> None:
    into[index] += value


@contextmanager
def _watched(parameters: dict[str, nn.Parameter], tell: Callable[[str, float], None]) -> Iterator[None]:
    """Gradients of `parameters` are reported as squared norms, and dropped."""

    def watch(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            tell(name, float(torch.linalg.vector_norm(parameter.grad.float())) ** 2)
            parameter.grad = None

        return hook

    handles = []
    for name, parameter in parameters.items():
        parameter.requires_grad_(True)
        handles.append(parameter.register_post_accumulate_grad_hook(watch(name)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.requires_grad_(False)
