"""Partial fine-tuning: the last decoder layers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from finetune_api.base import Rule

from .traits import MethodSettings, Rate, Traits


def _is_count_or_auto(new: dict[str, Any]) -> bool:
    value = new.get("layers", "auto")
    return value == "auto" if isinstance(value, str) else 1 <= value <= 1024


class Partial(MethodSettings):
    layers: Annotated[int | str, Field(union_mode="left_to_right")] = Field(
        "auto",
        description="Number of last decoder layers to train. auto: the fewest layers that hold 80 % of the squared "
        "relative gradient, measured before the first step; status.plan shows the result.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.layers) || (type(self.layers) == int ? self.layers >= 1 && self.layers <= 1024 : "
            "self.layers == 'auto')",
            message="method.partial.layers must be auto or a number from 1 to 1024",
            holds=lambda new, _: _is_count_or_auto(new),
        ),
    )


PARTIAL = Traits(
    name="partial",
    summary="train the last decoder layers",
    settings=Partial,
    trains="blocks",
    rate=Rate(over_full=1.0),  # the same weights as full, fewer of them
    library="transformers",
    shards=("fsdp", "deepspeed"),
    measured="layers",
    thrift=0,
    start=3,
)
