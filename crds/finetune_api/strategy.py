"""FineTuneJob.spec.strategy: where the weights of a gang lie. A strategy is a word of `Strategy.type`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from .base import ApiModel, Rule

SHARDED: Final = ("fsdp", "deepspeed")
"""Strategies whose processes work on shares: a pass of one needs the others."""

_ANYWHERE: Final = ("full", "partial", "lora", "adapter")

SHARDABLE: Final = {"fsdp": (*_ANYWHERE, "dora", "qlora"), "deepspeed": _ANYWHERE}
"""Methods that can work on a part of each weight, by strategy."""


def _only_deepspeed(field: str) -> Rule:
    return Rule(
        cel=f"!has(self.{field}) || (has(self.type) && self.type == 'deepspeed')",
        message=f"strategy.{field} is only for type deepspeed: remove it or set strategy.type: deepspeed",
        holds=lambda new, _: field not in new or new.get("type") == "deepspeed",
    )


class Strategy(ApiModel):
    type: Literal["auto", "ddp", "fsdp", "deepspeed"] = Field(
        "auto",
        description="ddp: every process holds the whole model. fsdp: every process holds a part of each weight. "
        "deepspeed: ZeRO; the trainer's image needs the extra of that name. "
        "auto: ddp where memory allows, else fsdp. A resumed run may have another.",
    )
    zero_stage: Annotated[int, Field(ge=1, le=3)] | None = Field(
        None,
        description="Of deepspeed, what processes share: 1 moments, 2 gradients too, 3 weights as well. Default 2.",
    )
    offload: Literal["none", "optimizer", "all"] | None = Field(
        None,
        description="Of deepspeed, what waits in host memory: optimizer moments; all (of zeroStage 3) weights too. "
        "Default none.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        _only_deepspeed("zeroStage"),
        _only_deepspeed("offload"),
        Rule(
            cel="!has(self.offload) || self.offload != 'all' || (has(self.zeroStage) && self.zeroStage == 3)",
            message="strategy.offload all needs zeroStage 3: weights can wait elsewhere only where they are shared",
            holds=lambda new, _: new.get("offload") != "all" or new.get("zeroStage") == 3,
        ),
    )

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return self.zero_stage or 2


def _shards_only(kind: str, methods: tuple[str, ...]) -> Rule:
    def holds(new: dict[str, Any], _: Any) -> bool:
        asked = new.get("strategy", {}).get("type", "auto")
        return asked != kind or new.get("method", {}).get("type", "lora") in methods

    return Rule(
        cel=f"!has(self.strategy) || !has(self.strategy.type) || self.strategy.type != '{kind}' || "
        f"!has(self.method) || !has(self.method.type) || self.method.type in {list(methods)}",
        message=f"strategy.type {kind} shards a model only for method.type {', '.join(methods)}: "
        "set strategy.type: ddp",
        holds=holds,
    )


METHODS_FIT = tuple(_shards_only(kind, methods) for kind, methods in SHARDABLE.items())
