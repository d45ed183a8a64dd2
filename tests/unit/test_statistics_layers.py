"""How many layers to train: the rule of one standard error."""

from __future__ import annotations

import math

import pytest

from finetune_trainer.statistics.layers import one_standard_error

MOVIES = {0: 0.755, 5: 0.779, 10: 0.806, 13: 0.830, 15: 0.869, 19: 0.873, 22: 0.876, 26: 0.860, 30: 0.849}
"""Leave-one-out accuracy by layer of SmolLM2-135M on 800 movie snippets (shared research, transfer.md §5)."""


def test_the_measured_curve_of_a_model_of_30_blocks() -> None:
    """Layer 22 is the best and layer 15 the lowest within its standard error, so 15 blocks are trained."""
    choice = one_standard_error(MOVIES, error=math.sqrt(0.876 * 0.124 / 800), blocks=30)
    assert (choice.best, choice.enough, choice.trained, choice.rises) == (22, 15, 15, False)


@pytest.mark.parametrize(
    ("accuracies", "enough", "trained"),
    [
        pytest.param([0.8, 0.8, 0.8, 0.8, 0.8], 0, 4, id="all layers alike: the embeddings are enough"),
        pytest.param([0.5, 0.5, 0.9, 0.9, 0.9], 2, 2, id="known from layer 2 on"),
        pytest.param([0.5, 0.5, 0.5, 0.9, 0.9], 3, 1, id="known from layer 3 on"),
        pytest.param([0.5, 0.6, 0.7, 0.8, 0.9], 4, 4, id="known by the last layer alone: all blocks"),
    ],
)
def test_the_blocks_above_the_lowest_good_layer_are_trained(accuracies: list[float], enough: int, trained: int) -> None:
    choice = one_standard_error(dict(enumerate(accuracies)), error=0.02, blocks=4)
    assert (choice.enough, choice.trained) == (enough, trained)


def test_a_quarter_of_the_blocks_is_trained_at_least() -> None:
    curve = {layer: 0.5 + 0.4 * (layer >= 29) for layer in range(31)}
    assert one_standard_error(curve, error=0.01, blocks=30).trained == 8
