"""How many of a model's last layers to train, by how well each layer's states predict the labels.

The rule of one standard error (Breiman et al., Classification and Regression Trees, 1984, §3.4.3): the lowest layer
within one standard error of the best one knows as much as any, so the layers up to it stay as they are, and those above
it are adapted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FEWEST = 0.25
"""Share of the blocks that are trained at least."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Layer 0 is the embeddings, n the output of the n-th block."""

    best: int
    """The layer with the highest accuracy; of equals the lowest."""
    enough: int
    """The lowest layer within one standard error of it."""
    trained: int
    """Blocks to train: those above `enough`, at least a quarter of all."""
    rises: bool
    """No lower layer comes close to the last one: there is no reason to leave any block as it is."""


def one_standard_error(accuracies: Mapping[int, float], *, error: float, blocks: int) -> Choice:
    """accuracies: by layer; error: standard error of the best one. {0: .6, 1: .79, 2: .8} ± .02 of 2 blocks: layer 1 is
    enough, one block is trained."""
    layers = sorted(accuracies)
    best = max(layers, key=lambda layer: (accuracies[layer], -layer))
    enough = next(layer for layer in layers if accuracies[layer] >= accuracies[best] - error)
    rises = enough == blocks
    fewest = -int(-blocks * FEWEST // 1)
    trained = blocks if rises else max(blocks - enough, fewest)
    return Choice(best=best, enough=enough, trained=trained, rises=rises)
