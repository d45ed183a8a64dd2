"""P-tuning: learned tokens that a small network makes."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from .prompt import VirtualTokens
from .traits import MethodSettings, Rate, Traits


class PTuning(MethodSettings):
    virtual_tokens: VirtualTokens = Field(20, description="Number of trainable tokens before each sequence.")
    hidden: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None, description="Hidden width of the network that computes them. Default: the model's width."
    )

    def filled(self, *, hidden_size: int) -> Self:
        return self.model_copy(update={"hidden": self.hidden or hidden_size})


PTUNING = Traits(
    name="ptuning",
    summary="a soft prompt computed by a small network",
    settings=PTuning,
    trains="added",
    rate=Rate(fixed=1e-4),  # the best run in PEFT's published comparison, as for prompt
    library="peft",
    shards=(),
    virtual="tokens",
    reads_weights=True,
)
