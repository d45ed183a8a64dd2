"""The two halves of a decoder block, by the names that models give them."""

from __future__ import annotations

from typing import Literal

from torch import nn

Half = Literal["attention", "mlp"]

_WORDS: dict[Half, tuple[str, ...]] = {
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "ffn", "feed_forward", "feedforward", "fc1", "fc2"),
}
_NOT = ("norm", "ln", "dropout", "bottleneck")
"""`post_attention_layernorm` stands beside attention and is none."""


def half_of(path: str) -> Half | None:
    """From the part of a name inside the block: `self_attn.q_proj` → attention."""
    for half, words in _WORDS.items():
        if any(word in part.lower() for part in path.split(".") for word in words):
            return half
    return None


def halves(block: nn.Module) -> dict[Half, nn.Module]:
    """The child whose output is what each half adds to the residual: of several (fc1, fc2) the last."""
    found: dict[Half, nn.Module] = {}
    for name, child in block.named_children():
        half = half_of(name)
        if half is not None and not any(word in name.lower() for word in _NOT):
            found[half] = child
    return found
