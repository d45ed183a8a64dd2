"""The decoder blocks of a network: found by structure, named by no architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Layers:
    """The decoder blocks of a network: where they live and how many there are."""

    prefix: str
    count: int

    def index(self, name: str) -> int:
        """The block that a module or parameter belongs to; -1 outside of the blocks."""
        if not name.startswith(self.prefix + "."):
            return -1
        return int(name[len(self.prefix) + 1 :].split(".", 1)[0])


def decoder_layers(network: nn.Module) -> Layers:
    """The longest list of blocks of one class. ValueError where there is none."""
    found = [
        Layers(name, len(module))
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not found:
        raise ValueError(f"{type(network).__name__} has no list of decoder blocks")
    return max(found, key=lambda layers: layers.count)


def lowest_layer(trainable: Mapping[str, nn.Parameter], layers: Layers, *, embeddings: nn.Module) -> int:
    """The lowest block that trains; -1 when the input embeddings do, the number of blocks when only the head does."""
    at_the_input = {id(parameter) for parameter in embeddings.parameters()}
    if any(id(parameter) in at_the_input for parameter in trainable.values()):
        return -1
    inside = [index for name in trainable if (index := layers.index(name)) >= 0]
    return min(inside, default=layers.count)
