"""What a job would need and take, for every method and strategy: the rows of `finetune plan`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from finetune_api.methods import Method
from finetune_api.spec import FineTuneJobSpec
from finetune_api.strategy import SHARDABLE
from finetune_trainer.planning.batch import GPU_TOKENS, micro_batch_tokens
from finetune_trainer.planning.devices import Device
from finetune_trainer.planning.memory import Estimate, Precision, estimate, trained_parameters
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.speed import step_seconds
from finetune_trainer.planning.spread import Spread
from finetune_trainer.planning.strategy import of_gang

FEWEST_TOKENS = 64
USUAL_ROW = 256
"""Tokens of a row, where nothing is known of the rows: they may be far shorter than sequenceLength."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Of one epoch; None where nobody knows."""

    rows: int | None = None
    tokens: int | None = None

    @property
    def row(self) -> float | None:
        return self.tokens / self.rows if self.rows and self.tokens else None


@dataclass(frozen=True, kw_only=True)
class Row:
    method: Method
    spread: Spread
    trained: int
    tokens: int
    """Computed at once."""
    need: Estimate
    memory: int
    """Bytes that one process may use."""
    tokens_per_second: float
    """Of all processes."""
    seconds: float | None
    """Of the training; None where the number of steps is not known."""
    cost: float | None = None

    @property
    def fits(self) -> bool:
        return self.need.total <= self.memory


@dataclass(frozen=True, kw_only=True)
class Planner:
    """One job on one kind of device."""

    spec: FineTuneJobSpec
    shape: ModelShape
    device: Device
    network: float = 12.5e9
    """Bytes a second between nodes."""
    workload: Workload = Workload()
    hourly: float | None = None
    """Price of one device."""

    @property
    def precision(self) -> Precision:
        wanted = self.spec.training.precision
        return wanted if wanted != "auto" else "bfloat16" if self.device.kind == "cuda" else "float32"

    @property
    def row_tokens(self) -> int:
        """Of a row of a micro-batch."""
        mean = self.workload.row or min(self.spec.data.sequence_length, USUAL_ROW)
        return min(self.spec.data.sequence_length, max(USUAL_ROW, math.ceil(mean)))

    @property
    def steps(self) -> int | None:
        """None where neither the rows nor maxSteps are known."""
        training = self.spec.training
        by_rows = self.workload.rows and math.ceil(self.workload.rows * training.epochs / training.batch_size)
        known = [count for count in (by_rows, training.max_steps) if count]
        return min(known) if known else None

    def rows(self) -> list[Row]:
        """Each method with each strategy that can carry it; the job's own settings of its own method."""
        return [self.row(method, spread) for method in self._methods() for spread in self._spreads(method)]

    def row(self, method: Method, spread: Spread, *, tokens: int | None = None) -> Row:
        tokens = tokens or self.spec.training.micro_batch_tokens or self._tokens(method, spread)
        batch = self.spec.training.batch_size * (self.workload.row or self.row_tokens)
        seconds = step_seconds(
            self.shape,
            method,
            precision=self.precision,
            device=self.device,
            spread=spread,
            tokens=batch,
            at_once=tokens,
            row=self.row_tokens,
            recomputed=self.spec.training.activation_checkpointing,
            optimizer=self.spec.training.optimizer,
            network=self.device.link if self.spec.max_nodes == 1 else min(self.network, self.device.link),
        )
        steps = self.steps
        if method.type == "probe" and self.workload.rows:  # one pass over the rows
            steps = math.ceil(self.workload.rows / self.spec.training.batch_size)
        whole = None if steps is None else steps * seconds
        paid = None if whole is None or self.hourly is None else whole / 3600 * self.hourly * self.spec.world_size
        return Row(
            method=method,
            spread=spread,
            trained=trained_parameters(self.shape, method),
            tokens=tokens,
            need=self.need(method, spread, tokens=tokens),
            memory=self.device.memory,
            tokens_per_second=batch / seconds,
            seconds=whole,
            cost=paid,
        )

    def need(self, method: Method, spread: Spread, *, tokens: int) -> Estimate:
        packed = min(tokens, self.row_tokens) if self.spec.data.packing else 0
        return estimate(
            self.shape,
            method,
            precision=self.precision,
            device=self.device.kind,
            tokens=tokens,
            row=packed,
            spread=spread,
            merged=self.spec.output.merged,
            recomputed=self.spec.training.activation_checkpointing,
            optimizer=self.spec.training.optimizer,
        )

    def most_tokens(self, method: Method, spread: Spread) -> int | None:
        """The largest microBatchTokens that fits, in steps of 64; None if not even the least does."""

        def fits(steps: int) -> bool:
            return self.need(method, spread, tokens=steps * FEWEST_TOKENS).total <= self.device.memory

        if not fits(1):
            return None
        low, high = 1, GPU_TOKENS // FEWEST_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low * FEWEST_TOKENS

    def spread(self, strategy: str) -> Spread:
        """Of this job's gang, with its own settings."""
        settings = self.spec.strategy.model_copy(update={"type": strategy})
        return of_gang(settings, nodes=self.spec.max_nodes, processes_per_node=self.spec.processes)

    def _tokens(self, method: Method, spread: Spread) -> int:
        """As the trainer chooses, and less where that would not fit."""
        chosen = micro_batch_tokens(
            self.shape,
            method,
            precision=self.precision,
            longest_row=self.row_tokens,
            device=self.device.kind,
            device_memory=self.device.memory,
            spread=spread,
            recomputed=self.spec.training.activation_checkpointing,
            optimizer=self.spec.training.optimizer,
        )
        return max(self.row_tokens, min(chosen, self.most_tokens(method, spread) or 0))

    def _methods(self) -> Iterator[Method]:
        for kind in get_args(Method.model_fields["type"].annotation):
            if kind == "probe" and self.spec.data.format != "classification" and not self.spec.data.classification:
                continue
            if kind == "qlora" and self.shape.mostly_experts:
                continue
            yield self.spec.method if kind == self.spec.method.type else Method(type=kind)

    def _spreads(self, method: Method) -> Iterator[Spread]:
        """ZeRO without offloading, and as the job asks for it. Of adapters its first stages share next to nothing, and
        of moments in 8 bits it knows nothing."""
        yield self.spread("ddp")
        many = self.spec.world_size > 1
        if many and method.type in SHARDABLE["fsdp"]:
            yield self.spread("fsdp")
        if self.spec.training.optimizer != "adamw" or method.type not in SHARDABLE["deepspeed"]:
            return
        stages = (1, 2, 3) if method.trains_the_model else (3,)
        zero = [Spread(strategy="deepspeed", ranks=self.spec.world_size, zero_stage=stage) for stage in stages if many]
        if self.spec.strategy.type == "deepspeed" and (own := self.spread("deepspeed")) not in zero:
            zero.append(own)
        yield from zero
