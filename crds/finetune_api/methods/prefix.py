"""Prefix tuning: learned keys and values in every layer."""

from __future__ import annotations

from pydantic import Field

from .prompt import VirtualTokens
from .traits import MethodSettings, Rate, Traits


class Prefix(MethodSettings):
    virtual_tokens: VirtualTokens = Field(20, description="Number of trainable keys and values in each layer.")


PREFIX = Traits(
    name="prefix",
    summary="trainable keys and values in each layer",
    settings=Prefix,
    trains="added",
    # The best run in PEFT's published comparison, where a fifth as much came to less than half the accuracy.
    rate=Rate(fixed=5e-3),
    library="peft",
    shards=(),
    virtual="cache",
    reads_weights=True,
    not_compiled="its keys and values reach the blocks as a cache, which torch.compile would recompile in each step",
    not_recomputed="its keys and values reach the blocks as a cache, which would grow in the second pass",
)
