"""The two halves of a decoder block, by the names that models give them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Half = Literal["attention", "mlp"]

_WORDS: dict[Half, tuple[str, ...]] = {
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "ffn", "feed_forward", "feedforward", "fc1", "fc2"),
}
_NOT = ("norm", "ln", "dropout", "bottleneck")
"""`post_attention_layernorm` is next to attention, and not attention."""


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


_KEYS_OR_VALUES = re.compile(r"(^|_)(k|v|kv|qkv|qkvz|key|value)(_|$)|^(wqkv|c_attn)$")
_DOWN = re.compile(r"down|4h_to_h|^(fc2|fc_out|c_proj|w2|output_linear|value)$")


def makes_keys_or_values(path: str) -> bool:
    """Whether the linear layer of this name computes keys or values, alone or together with queries."""
    return half_of(path) != "mlp" and bool(_KEYS_OR_VALUES.search(path.rpartition(".")[2].lower()))


def ends_feed_forward(path: str) -> bool:
    """Whether the linear layer of this name takes what is inside a feed-forward network back to the model's width."""
    return half_of(path) == "mlp" and bool(_DOWN.search(path.rpartition(".")[2].lower()))
