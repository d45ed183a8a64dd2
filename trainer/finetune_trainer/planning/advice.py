"""Recommends a row of the plan, and a change for a job that does not fit.

The rule for a start, by examples n and trained tokens T of an epoch: under 100 examples something small; up to 10,000,
or fewer than 100 million tokens, LoRA on all linear layers, which matches full fine-tuning while its capacity suffices
(scaling laws of fine-tuning, 2402.17193, say that the rest depends on task and data: measure before stepping up); from
100 million tokens full. qlora where lora does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.failures import FinetuneError
from finetune_api.methods import TRAITS, Method
from finetune_api.strategy import SHARDABLE
from finetune_trainer.methods.needs import check_recompute
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.spread import Spread
from finetune_trainer.planning.table import Planner, Row

FEW_ROWS = 100
MANY_TOKENS = 100_000_000
SMALL_RANK = 8
LEAST_SEQUENCE = 256
"""Shorter rows are not proposed: they would be cut to pieces."""


@dataclass(frozen=True)
class Advice:
    row: Row | None
    reasons: tuple[str, ...]


def recommended(rows: Sequence[Row], planner: Planner) -> Advice:
    """Returns the row to start with; none if nothing fits."""
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
                "every process can hold the whole model, and ddp communicates the least"
                if whole
                else f"no process can hold the whole model: {best.spread.label} shards it"
            )
        return Advice(best, tuple(reasons))
    return Advice(None, tuple(reasons))


def _order(planner: Planner, offered: set[str]) -> tuple[list[str], str]:
    """Methods, the preferred one first, and why it is."""
    n, tokens = planner.workload.rows, planner.workload.tokens
    frugal = [name for _, name in sorted((each.start, each.name) for each in TRAITS.values() if each.start is not None)]
    of_few, of_many = (
        [name for name, each in TRAITS.items() if each.start_with == data] for data in ("few rows", "many tokens")
    )
    first = [name for name in of_few if name in offered]
    if n is not None and n < FEW_ROWS:
        what = "a probe cannot overfit much" if first else "use rank 8 or less and stop early"
        return [*first, *frugal], f"{n} examples are few: {what}"
    probe = "; a probe costs next to nothing, and is the baseline to beat" if first else ""
    if tokens is not None and tokens >= MANY_TOKENS:
        return [*of_many, *frugal], f"{tokens:,} tokens per epoch exceed the capacity of adapters{probe}"
    if n is None:
        return frugal, f"lora is a good start for most data; the number of rows is not known{probe}"
    return frugal, f"{n:,} examples: lora matches full fine-tuning while its capacity suffices{probe}"


def smallest_change(planner: Planner, spread: Spread) -> str:
    """Returns the cheapest change that makes a job fit, for its hint."""
    spec = planner.spec
    tokens = planner.most_tokens(spec.method, spread)
    if tokens is not None and tokens >= planner.longest_row:
        return f"Set training.microBatchTokens: {tokens}; the batch size does not change."
    for change in _changes(planner, spread):
        if change.fits():
            return f"Set {change.text}."
    if tokens is not None and tokens >= LEAST_SEQUENCE:
        return (
            f"Set data.sequenceLength: {tokens} and data.overlong: truncate or drop; a row is computed as a whole, and "
            f"the longest may have {planner.longest_row} tokens."
        )
    need = planner.need(spec.method, spread, tokens=planner.longest_row).total
    return f"Give each process {human(need)}, or use a smaller model."


@dataclass(frozen=True)
class _Change:
    text: str
    """As a manifest has it."""
    planner: Planner
    method: Method
    spread: Spread

    def fits(self) -> bool:
        return self.planner.fits(self.method, self.spread)

    def recomputed(self) -> _Change:
        """The same, and activation checkpointing."""
        planner = _with(self.planner, activation_checkpointing=True)
        text = f"{self.text} and " if self.text else ""
        return replace(self, planner=planner, text=f"{text}training.activationCheckpointing: true")


def _changes(planner: Planner, spread: Spread) -> Iterator[_Change]:
    """What may make a job fit, the cheapest first."""
    method = planner.spec.method
    as_it_is = _Change("", planner, method, spread)
    if _recomputes(method, planner):
        yield as_it_is.recomputed()
    if method.type in SHARDABLE["fsdp"] and planner.spec.world_size > 1 and spread.strategy != "fsdp":
        yield from _twice(replace(as_it_is, text="strategy.type: fsdp", spread=planner.spread("fsdp")))
    if method.traits.steps and "deepspeed" not in (spread.strategy, planner.spec.strategy.type):
        thrifty = _with(planner, optimizer="adamw8bit")
        yield from _twice(replace(as_it_is, text="training.optimizer: adamw8bit", planner=thrifty))
    for kind in thriftier(method):
        chosen = Method.model_validate({"type": kind})
        other = replace(as_it_is, text=f"method.type: {kind}", method=chosen, spread=planner.spread("ddp"))
        shared = replace(
            other, text=f"{other.text} and strategy.type: fsdp", spread=planner.spread("fsdp", other.method)
        )
        kinds = [other, shared] if planner.spec.world_size > 1 else [other]
        yield from kinds
        yield from (each.recomputed() for each in kinds if _recomputes(each.method, planner))
    low_rank = method.low_rank
    if low_rank is not None and low_rank.rank > SMALL_RANK:
        smaller = method.changed(low_rank.model_copy(update={"rank": SMALL_RANK}))
        yield replace(as_it_is, text=f"method.{method.type}.rank: {SMALL_RANK}", method=smaller)
    if method.type in SHARDABLE["fsdp"] and planner.device.kind == "cuda":
        for processes in (2, 4, 8):
            if processes > planner.spec.processes:
                yield from _twice(_on_more(planner, method, processes))


def thriftier(method: Method) -> tuple[str, ...]:
    """Methods that need less memory, by the order of the ladder that this one is on; none for one that is on none."""
    own = method.traits.thrift
    if own is None:
        return ()
    starts = [each for each in TRAITS.values() if each.start is not None]
    return tuple(name for thrift, name in sorted((each.thrift or 0, each.name) for each in starts) if thrift > own)


def _on_more(planner: Planner, method: Method, processes: int) -> _Change:
    """Sharded over so many GPUs of each node."""
    spec = planner.spec.model_copy(update={"processes_per_node": processes})
    more = replace(planner, spec=spec)
    text = f"resources.limits: {{nvidia.com/gpu: {processes}}} and strategy.type: fsdp"
    return _Change(text, more, method, more.spread("fsdp", method))


def _twice(change: _Change) -> Iterator[_Change]:
    yield change
    if _recomputes(change.method, change.planner):
        yield change.recomputed()


def _recomputes(method: Method, planner: Planner) -> bool:
    training = planner.spec.training
    try:
        check_recompute(method, compiled=training.compile)
    except FinetuneError:
        return False
    return not training.activation_checkpointing


def _with(planner: Planner, **training: Any) -> Planner:
    """The job with another `training`."""
    changed = planner.spec.training.model_copy(update=training)
    return replace(planner, spec=planner.spec.model_copy(update={"training": changed}))
