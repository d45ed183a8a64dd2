"""FineTuneJob.spec.strategy: parallelism, that is how the processes of a job share the model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from .base import ApiModel, Rule
from .methods import TRAITS, type_of

SHARDED: Final = ("fsdp", "deepspeed")
"""Strategies whose processes hold shards: the forward pass of one needs the others."""

_WIDELY_SHARDED: Final = sorted(TRAITS.values(), key=lambda method: -len(method.shards))
"""Methods, those first that every strategy can shard."""

SHARDABLE: Final = {kind: tuple(method.name for method in _WIDELY_SHARDED if kind in method.shards) for kind in SHARDED}
"""Methods that support sharded weights, by strategy."""


def _only_deepspeed(field: str) -> Rule:
    return Rule(
        cel=f"!has(self.{field}) || (has(self.type) && self.type == 'deepspeed')",
        message=f"strategy.{field} is only for type deepspeed: remove it or set strategy.type: deepspeed",
        holds=lambda new, _: field not in new or new.get("type") == "deepspeed",
    )


class Strategy(ApiModel):
    type: Literal["auto", "ddp", "fsdp", "deepspeed"] = Field(
        "auto",
        description="ddp: data parallel, every process holds the whole model. fsdp: FSDP2, every process holds a shard "
        "of each weight. deepspeed: ZeRO; the trainer image needs the extra deepspeed. auto: ddp if it fits into "
        "memory, otherwise fsdp. The strategy may differ between attempts.",
    )
    zero_stage: Annotated[int, Field(ge=1, le=3)] | None = Field(
        None,
        description="For deepspeed, what is sharded. 1: optimizer state. 2: gradients too. 3: weights too. Default 2.",
    )
    offload: Literal["none", "optimizer", "all"] | None = Field(
        None,
        description="For deepspeed, what is offloaded to host memory. optimizer: optimizer state. all: weights too, "
        "with zeroStage 3. Default none.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        _only_deepspeed("zeroStage"),
        _only_deepspeed("offload"),
        Rule(
            cel="!has(self.offload) || self.offload != 'all' || (has(self.zeroStage) && self.zeroStage == 3)",
            message="strategy.offload all needs zeroStage 3: only sharded weights can be offloaded",
            holds=lambda new, _: new.get("offload") != "all" or new.get("zeroStage") == 3,
        ),
    )

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return self.zero_stage or 2


def _shards_only(kind: str, methods: tuple[str, ...]) -> Rule:
    def holds(new: dict[str, Any], _: Any) -> bool:
        asked = new.get("strategy", {}).get("type", "auto")
        return asked != kind or type_of(new) in methods

    return Rule(
        cel=f"!has(self.strategy) || !has(self.strategy.type) || self.strategy.type != '{kind}' || "
        f"!has(self.method) || !has(self.method.type) || self.method.type in {list(methods)}",
        message=f"strategy.type {kind} shards a model only for method.type {', '.join(methods)}: "
        "set strategy.type: ddp",
        holds=holds,
    )


METHODS_FIT = tuple(_shards_only(kind, methods) for kind, methods in SHARDABLE.items())
