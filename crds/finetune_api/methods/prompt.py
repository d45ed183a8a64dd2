"""Prompt tuning: learned tokens in front of every row."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .traits import MethodSettings, Rate, Traits

VirtualTokens = Annotated[int, Field(ge=1, le=1024)]


class Prompt(MethodSettings):
    virtual_tokens: VirtualTokens = Field(20, description="Number of trainable tokens before each sequence.")
    init_text: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Text whose tokens initialize them, repeated or cut. Default: random tokens of the vocabulary.",
    )


PROMPT = Traits(
    name="prompt",
    summary="a soft prompt, trainable tokens before each sequence",
    settings=Prompt,
    trains="added",
    # The best run in PEFT's published comparison (Llama-3.2-3B on MetaMathQA), where a tenth as much came to less than
    # half the accuracy.
    rate=Rate(fixed=1e-3),
    library="peft",
    shards=(),
    virtual="tokens",
    reads_weights=True,
    start=4,
)
