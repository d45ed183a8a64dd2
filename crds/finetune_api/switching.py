"""spec.output.switchTest and status.artifact.switchTest: several adapters on one base model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .base import ApiModel, Rule
from .methods import AUTO, TRAITS, type_of

SWITCHES = 200
"""Switches of one test."""

MOST_ADAPTERS = 16
"""Earlier adapters of one test; all are in memory at the same time."""


class Latency(ApiModel):
    """Milliseconds."""

    median: float
    p95: float = Field(description="95th percentile.")


class SwitchTest(ApiModel):
    """What a test of several adapters on one base model found."""

    verdict: Literal["passed", "failed"] = Field(
        description="passed: each adapter gives with the others what it gives alone, and damaged ones are refused."
    )
    reason: str = Field("", max_length=600, description="Why it failed.")
    adapters: int = Field(description="Number of adapters, this job's included.")
    switches: int = Field(description="Number of switches, in random order.")
    largest_difference: float | None = Field(
        None, description="Largest difference of a logit from that of the same adapter alone."
    )
    refused: int = Field(0, description="Number of damaged copies that were refused while the others kept serving.")
    load: Latency | None = Field(None, description="Time to load an adapter from disk.")
    switch: Latency | None = Field(None, description="Time to switch to another adapter.")
    merge: Latency | None = Field(None, description="Time to merge an adapter into the base model's weights.")

    def told(self) -> str:
        """passed: 3 adapters on one base, 200 switches, 4 damaged copies refused; switch 0.4 ms (p95 0.6)."""
        counted = f"{self.adapters} adapters on one base, {self.switches} switches"
        if self.verdict == "failed":
            return f"failed: {self.reason} ({counted})"
        times = [
            f"{name} {each.median:.3g} ms (p95 {each.p95:.3g})"
            for name, each in (("load", self.load), ("switch", self.switch), ("merge", self.merge))
            if each is not None
        ]
        return f"passed: {counted}, {self.refused} damaged copies refused; {', '.join(times)}"


_SWITCHED = tuple(method.name for method in TRAITS.values() if method.scalable and not method.four_bits)
_ASKS = "has(self.output) && has(self.output.switchTest) && self.output.switchTest.size() > 0"
_SHARDED = ("fsdp", "deepspeed")


def _asks(new: dict[str, Any]) -> bool:
    return bool((new.get("output") or {}).get("switchTest"))


SWITCH_RULES = (
    Rule(
        cel=f"!({_ASKS}) || !has(self.method) || !has(self.method.type) || self.method.type in {list(_SWITCHED)}",
        message=f"output.switchTest is only for method.type {', '.join(_SWITCHED)}, whose adapters servers switch on "
        f"one base (with {AUTO} the method is not known in advance): remove it, and use finetune switch-test on the "
        "artifacts",
        holds=lambda new, _: not _asks(new) or type_of(new) in _SWITCHED,
    ),
    Rule(
        cel=f"!({_ASKS}) || !has(self.strategy) || !has(self.strategy.type) || "
        f"!(self.strategy.type in {list(_SHARDED)})",
        message="output.switchTest needs the whole base model in one process: set strategy.type: ddp, or remove it and "
        "use finetune switch-test on the artifacts",
        holds=lambda new, _: not _asks(new) or (new.get("strategy") or {}).get("type") not in _SHARDED,
    ),
)
