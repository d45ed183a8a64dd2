"""Which row of the plan to take, and what to change in a job that cannot fit.

The rule for a start, by examples n and trained tokens T of an epoch: under 100 examples something small; up to 10,000,
or fewer than 100 million tokens, LoRA on all linear layers, which matches full fine-tuning while its capacity suffices
(scaling laws of fine-tuning, 2402.17193, say that the rest depends on task and data: measure before stepping up); from
100 million tokens full. qlora where lora does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune_api.failures import FinetuneError
from finetune_api.methods import Lora, Method
from finetune_api.strategy import SHARDABLE
from finetune_trainer.methods.needs import check_recompute
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.spread import Spread
from finetune_trainer.planning.table import Planner, Row

FEW_ROWS = 100
MANY_TOKENS = 100_000_000

_THRIFTIER: Mapping[str, tuple[Literal["lora", "qlora"], ...]] = {
    "full": ("lora", "qlora"),
    "partial": ("lora", "qlora"),
    "dora": ("lora", "qlora"),
    "adapter": ("lora", "qlora"),
    "lora": ("qlora",),
}


@dataclass(frozen=True)
class Advice:
    row: Row | None
    reasons: tuple[str, ...]


def recommended(rows: Sequence[Row], planner: Planner) -> Advice:
    """The row to begin with; none where nothing fits."""
    order, why = _order(planner, {row.method.type for row in rows})
    reasons = [why]
    for number, kind in enumerate(order):
        fitting = [row for row in rows if row.method.type == kind and row.fits]
        if not fitting:
            reasons.append(f"{kind} does not fit into {human(planner.device.memory)}")
            continue
        best = next((row for row in fitting if row.spread.strategy == "ddp"), fitting[0])
        if number == 0:
            reasons.append(f"it fits into {human(planner.device.memory)}")
        if planner.spec.world_size > 1:
            whole = best.spread.strategy == "ddp"
            reasons.append(
                "every process can hold the whole model, and ddp says least between them"
                if whole
                else f"no process can hold the whole model: {best.spread.label} shards it"
            )
        return Advice(best, tuple(reasons))
    return Advice(None, tuple(reasons))


def _order(planner: Planner, offered: set[str]) -> tuple[list[str], str]:
    """Methods, the preferred one first, and why it is."""
    n, tokens = planner.workload.rows, planner.workload.tokens
    frugal = ["lora", "qlora", "partial", "prompt"]
    if n is not None and n < FEW_ROWS:
        first = ["probe"] if "probe" in offered else []
        what = "a probe cannot overfit much" if first else "use rank 8 or less and stop early"
        return [*first, *frugal], f"{n} examples are few: {what}"
    probe = "; a probe costs next to nothing, and is the line that it has to beat" if "probe" in offered else ""
    if tokens is not None and tokens >= MANY_TOKENS:
        return ["full", *frugal], f"{tokens:,} tokens an epoch are more than adapters can take up{probe}"
    if n is None:
        return frugal, f"lora is the start for most data; how many rows there are is not known{probe}"
    return frugal, f"{n:,} examples: lora matches full fine-tuning while its capacity suffices{probe}"


def smallest_change(planner: Planner, spread: Spread) -> str:
    """For the hint of a job that does not fit: the change that costs the least and makes it fit."""
    spec = planner.spec
    method = spec.method
    tokens = planner.most_tokens(method, spread)
    fewer = f"Set training.microBatchTokens: {tokens}; the batch stays what it is."
    if tokens is not None and tokens >= planner.row_tokens:
        return fewer
    if _fits_recomputed(planner, spread):  # a row is computed as a whole
        return "Set training.activationCheckpointing: true."
    if tokens is not None:
        return fewer
    shared = _other_strategy(planner, method, spread)
    if shared is not None:
        return f"Set strategy.type: {shared.strategy}."
    if _fits_in_eight_bits(planner, spread):
        return "Set training.optimizer: adamw8bit."
    least = FewestTokens(planner)
    for kind in _THRIFTIER.get(method.type, ()):
        other = Method(type=kind)
        for candidate in (planner.spread("ddp"), _shards(planner, other)):
            if candidate is not None and least.fits(other, candidate):
                strategy = f" and strategy.type: {candidate.strategy}" if candidate.strategy != "ddp" else ""
                return f"Set method.type: {kind}{strategy}."
    if method.type == "lora" and (method.lora or Lora()).rank > 8:
        smaller = method.model_copy(update={"lora": (method.lora or Lora()).model_copy(update={"rank": 8})})
        if least.fits(smaller, spread):
            return "Set method.lora.rank: 8."
    need = planner.need(method, spread, tokens=spec.training.micro_batch_tokens or planner.row_tokens).total
    return f"Give each process {human(need)}, or use a smaller model."


@dataclass(frozen=True)
class FewestTokens:
    """Whether something fits with one row of usual length at once, or what the manifest asks for."""

    planner: Planner

    def fits(self, method: Method, spread: Spread) -> bool:
        tokens = self.planner.spec.training.micro_batch_tokens or self.planner.row_tokens
        return self.planner.need(method, spread, tokens=tokens).total <= self.planner.device.memory


def _fits_recomputed(planner: Planner, spread: Spread) -> bool:
    spec = planner.spec
    try:
        check_recompute(spec.method, compiled=spec.training.compile)
    except FinetuneError:
        return False
    return _fits(planner, spread, activation_checkpointing=True)


def _fits_in_eight_bits(planner: Planner, spread: Spread) -> bool:
    spec = planner.spec
    known = spec.method.type != "probe" and "deepspeed" not in (spread.strategy, spec.strategy.type)
    return known and _fits(planner, spread, optimizer="adamw8bit")


def _fits(planner: Planner, spread: Spread, **changes: Any) -> bool:
    """The job's own method, with another `training`."""
    training = planner.spec.training.model_copy(update=changes)
    other = replace(planner, spec=planner.spec.model_copy(update={"training": training}))
    return FewestTokens(other).fits(planner.spec.method, spread)


def _shards(planner: Planner, method: Method) -> Spread | None:
    return planner.spread("fsdp") if planner.spec.world_size > 1 and method.type in SHARDABLE["fsdp"] else None


def _other_strategy(planner: Planner, method: Method, spread: Spread) -> Spread | None:
    other = _shards(planner, method)
    if other is None or spread.strategy == other.strategy or not FewestTokens(planner).fits(method, other):
        return None
    return other
