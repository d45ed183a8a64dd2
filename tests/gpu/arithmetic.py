"""Operations, shares and differences, as pure functions of numbers.

Operations count what the mathematics needs, whatever a program computes: two for each multiply-add, products alone,
attention over the tokens that a causal token sees. Nothing is added for recomputation, so the share of the peak is the
model's (MFU) and not the hardware's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Trains = Literal["all", "adapter"]


def block_weights(config: Mapping[str, Any]) -> int:
    """Weights of one Llama block that take part in products: four of the attention, three of the feed-forward part."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    queries, keys = heads * size, (config.get("num_key_value_heads") or heads) * size
    return hidden * (2 * queries + 2 * keys) + 3 * hidden * config["intermediate_size"]


def product_weights(config: Mapping[str, Any]) -> int:
    """Weights that a token is multiplied with: all blocks and the head. Looking up an embedding multiplies nothing."""
    return config["num_hidden_layers"] * block_weights(config) + config["vocab_size"] * config["hidden_size"]


def parameters(config: Mapping[str, Any]) -> int:
    """Of the whole model, norms too."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    tables = 1 if config.get("tie_word_embeddings") else 2
    norms = (2 * layers + 1) * hidden
    return layers * block_weights(config) + tables * config["vocab_size"] * hidden + norms


def mean_context(lengths: Sequence[int]) -> float:
    """Tokens that a token of these documents sees on average, itself included: 1, 2 and 3 of a document of 3 make 2."""
    return sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)


def token_operations(config: Mapping[str, Any], *, trains: Trains, context: float, adapter_weights: int = 0) -> float:
    """Floating-point operations of one trained token, forwards and backwards.

    A weight costs 2 forwards, 2 for the gradient of its input and 2 for its own, which a frozen one does not have.
    """
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    attention = 3 * 4 * config["num_hidden_layers"] * heads * size * context
    each = 6 if trains == "all" else 4
    return each * product_weights(config) + 6 * adapter_weights + attention


def share_of_peak(tokens_per_second: float, operations: float, peak: float) -> float:
    """MFU, of a device that can do `peak` operations a second."""
    return tokens_per_second * operations / peak


def apart(left: Sequence[float], right: Sequence[float]) -> float:
    """The largest difference of two rows of losses, relative to the right one; infinite where they cannot be held
    against each other."""
    if len(left) != len(right) or not left:
        return math.inf
    differences = [abs(a - b) / abs(b) if b else abs(a) for a, b in zip(left, right, strict=True)]
    return math.inf if any(math.isnan(d) for d in differences) else max(differences)


def off(measured: float, planned: float) -> float:
    """How far a plan was from what was measured, relative to that: 0.05 is a plan that asked for 5 % more."""
    return planned / measured - 1 if measured else math.inf


def busy(spans: Sequence[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
    """(time in which at least one of the spans (start, end) runs, the gaps between them in order)."""
    total, gaps, until = 0, [], None
    for start, end in sorted(spans):
        if until is None or start > until:
            if until is not None:
                gaps.append((until, start))
            total, until = total + end - start, end
        elif end > until:
            total, until = total + end - until, end
    return total, gaps
