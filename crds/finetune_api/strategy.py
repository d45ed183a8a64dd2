"""FineTuneJob.spec.strategy: where the weights of a gang lie. A strategy is a word of `Strategy.type`."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from .base import ApiModel, Rule

SHARDED: Final = ("fsdp",)
"""Strategies under which no process holds the whole model."""

SHARDABLE: Final = ("full", "partial", "lora", "adapter")
"""Methods that can work on a part of each weight."""


class Strategy(ApiModel):
    type: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="ddp: every process holds the whole model. fsdp: every process holds a part of each weight. "
        "auto: ddp where memory allows, else fsdp. A resumed run may have another.",
    )


def _fits(new: dict[str, Any]) -> bool:
    kind = new.get("strategy", {}).get("type", "auto")
    return kind not in SHARDED or new.get("method", {}).get("type", "lora") in SHARDABLE


METHOD_FITS = Rule(
    cel="!has(self.strategy) || !has(self.strategy.type) || !(self.strategy.type in "
    f"{list(SHARDED)}) || !has(self.method) || !has(self.method.type) || self.method.type in {list(SHARDABLE)}",
    message=f"strategy.type {' and '.join(SHARDED)} shard a model only for method.type {', '.join(SHARDABLE)}: "
    "set strategy.type: ddp",
    holds=lambda new, _: _fits(new),
)
