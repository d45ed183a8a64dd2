"""What a job would need and take, for every method and strategy: the rows of `finetune plan`.

Memory is planned by the longest row, which is always computed as a whole; time by the mean row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.methods import TRAITS, Method
from finetune_api.regularization import OWN_TOKENS
from finetune_api.spec import FineTuneJobSpec
from finetune_api.strategy import SHARDABLE
from finetune_trainer.planning.answering import Answering, answering
from finetune_trainer.planning.batch import GPU_TOKENS, micro_batch_tokens, tokens_of_a_step
from finetune_trainer.planning.devices import Device
from finetune_trainer.planning.memory import Estimate, Precision, estimate, model_bytes, trained_parameters
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.speed import step_seconds
from finetune_trainer.planning.spread import Spread
from finetune_trainer.planning.strategy import ROOM, of_gang

FEWEST_TOKENS = 64
SHORT_ROW = 256
"""Packed rows are at least so wide (`data.pack.SHORT_ROW`; it is not imported, for a plan loads no numpy)."""
USUAL_ROW = 256
"""Mean tokens of a row, where nothing is known of the rows: they may be far shorter than sequenceLength."""


PASS_OF_THE_BASE = 0.5
"""Time of a forward pass of the base model, relative to a step of an adapter over the same tokens (2 of 4 products)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Of one epoch; None if unknown."""

    rows: int | None = None
    tokens: int | None = None
    longest: int | None = None
    """Tokens of the longest row, replayed ones included."""
    replayed_row: float | None = None
    """Mean tokens of a row of general text that is replayed."""

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
    """Inter-node bandwidth, in bytes per second."""
    workload: Workload = Workload()
    hourly: float | None = None
    """Price of one device."""

    @property
    def precision(self) -> Precision:
        wanted = self.spec.training.precision
        return wanted if wanted != "auto" else "bfloat16" if self.device.kind == "cuda" else "float32"

    @property
    def longest_row(self) -> int:
        """Its tokens. Where it is not known, a row may be as long as data.sequenceLength."""
        limit = self.spec.data.sequence_length
        return min(limit, self.workload.longest or limit)

    @property
    def tokens_of_a_step(self) -> int:
        """The most that one process has to compute in a step."""
        rows = min(self.spec.training.batch_size, self.workload.rows or self.spec.training.batch_size)
        if (replay := self.spec.regularization.replay) is not None:
            rows += math.ceil(replay.rows_per_step(self.spec.training.batch_size))
        row = self.workload.row or self.longest_row
        return tokens_of_a_step(
            rows=rows,
            processes=self.spec.world_size,
            longest_row=self.longest_row,
            row=row,
            packing=self.spec.data.packing,
        )

    @property
    def row_tokens(self) -> int:
        """Of a usual row, by which time is planned."""
        mean = self.workload.row or min(self.spec.data.sequence_length, USUAL_ROW)
        return min(self.spec.data.sequence_length, max(USUAL_ROW, math.ceil(mean)))

    @property
    def replayed_row(self) -> float:
        """Mean tokens of a row of general text; unless they are known it is taken to fill data.sequenceLength."""
        replay, longest = self.spec.regularization.replay, self.spec.data.sequence_length
        if replay is not None and replay.source == "self":
            return min(OWN_TOKENS, longest)
        return self.workload.replayed_row or longest

    @property
    def steps(self) -> int | None:
        """None where neither the rows nor maxSteps are known."""
        training = self.spec.training
        if training.max_steps or not self.workload.rows:
            return training.max_steps
        return math.ceil(self.workload.rows / training.batch_size) * training.epochs

    @property
    def between(self) -> float:
        """Bandwidth between ranks, in bytes per second."""
        return self.device.link if self.spec.max_nodes == 1 else min(self.network, self.device.link)

    def answering(self, recommended: Row | None) -> Answering | None:
        """What generated answers cost with the job's strategy, where it names one, else with that of `recommended`.
        None where nothing is generated."""
        if self.spec.generates is None:
            return None
        kind = self.spec.strategy.type
        spread = (
            recommended.spread if kind == "auto" and recommended else self.spread("ddp" if kind == "auto" else kind)
        )
        return answering(
            self.spec.generates,
            weights=model_bytes(self.shape, self.spec.method, 2 if self.precision == "bfloat16" else 4),
            device=self.device,
            spread=spread,
            network=self.between,
        )

    def rows(self) -> list[Row]:
        """Each method with each strategy that can carry it; the job's own settings of its own method."""
        return [self.row(method, spread) for method in self._methods() for spread in self._spreads(method)]

    def row(self, method: Method, spread: Spread, *, tokens: int | None = None) -> Row:
        tokens = tokens or self.at_once(method, spread)
        batch = self.spec.training.batch_size * (self.workload.row or self.row_tokens)
        replayed = 0.0
        if (replay := self.spec.regularization.replay) is not None:
            replayed = replay.rows_per_step(self.spec.training.batch_size) * self.replayed_row
        if self.spec.regularization.kl_to_base is not None:
            batch += PASS_OF_THE_BASE * (replayed or batch)
        batch += replayed
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
            network=self.between,
        )
        steps = self.steps
        if not method.traits.steps and self.workload.rows:  # one pass over the rows
            steps = math.ceil(self.workload.rows / self.spec.training.batch_size)
        whole = None if steps is None else steps * seconds
        paid = None if whole is None or self.hourly is None else whole / 3600 * self.hourly * self.spec.world_size
        return Row(
            method=method,
            spread=spread,
            trained=trained_parameters(self.shape, method, self.spec.vocabulary),
            tokens=tokens,
            need=self.need(method, spread, tokens=tokens),
            memory=self.device.memory,
            tokens_per_second=batch / seconds,
            seconds=whole,
            cost=paid,
        )

    def at_once(self, method: Method, spread: Spread) -> int:
        """Tokens that one process computes at once: microBatchTokens, or as many as the trainer would choose. At least
        the longest row, and no more than a step has."""
        wanted = self.spec.training.micro_batch_tokens or self._tokens(method, spread)
        return max(self.longest_row, min(wanted, self.tokens_of_a_step))

    def need(self, method: Method, spread: Spread, *, tokens: int) -> Estimate:
        packed = min(tokens, max(SHORT_ROW, self.longest_row)) if self.spec.data.packing else 0
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
            regularization=self.spec.regularization,
            vocabulary=self.spec.vocabulary,
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

    def spread(self, strategy: str, method: Method | None = None) -> Spread:
        """Of this job's gang, with its own settings; `method`: another than the job's."""
        settings = self.spec.strategy.model_copy(update={"type": strategy})
        return of_gang(
            settings,
            nodes=self.spec.max_nodes,
            processes_per_node=self.spec.processes,
            fits=lambda spread: self.fits(method or self.spec.method, spread, share=ROOM),
        )

    def fits(self, method: Method, spread: Spread, *, share: float = 1.0) -> bool:
        """Into this share of the memory, with as few tokens at once as the job allows."""
        least = max(self.longest_row, min(self.spec.training.micro_batch_tokens or 0, self.tokens_of_a_step))
        return self.need(method, spread, tokens=least).total <= share * self.device.memory

    def _tokens(self, method: Method, spread: Spread) -> int:
        """As the trainer chooses, and less where that would not fit."""
        chosen = micro_batch_tokens(
            self.shape,
            method,
            precision=self.precision,
            longest_row=self.longest_row,
            device=self.device.kind,
            device_memory=self.device.memory,
            spread=spread,
            recomputed=self.spec.training.activation_checkpointing,
            optimizer=self.spec.training.optimizer,
            most=self.tokens_of_a_step,
            regularization=self.spec.regularization,
            vocabulary=self.spec.vocabulary,
        )
        return min(chosen, self.most_tokens(method, spread) or 0)

    def _methods(self) -> Iterator[Method]:
        labelled = self.spec.data.format == "classification" or self.spec.data.classification
        for kind, traits in TRAITS.items():
            if traits.labels_only and not labelled:
                continue
            if traits.four_bits and self.shape.mostly_experts:
                continue
            yield self.spec.method if kind == self.spec.method.type else Method.model_validate({"type": kind})

    def _spreads(self, method: Method) -> Iterator[Spread]:
        """ZeRO without offloading, and as the job asks for it. Of adapters its first stages share next to nothing, and
        it does not know 8-bit AdamW."""
        yield self.spread("ddp")
        many = self.spec.world_size > 1
        if many and method.type in SHARDABLE["fsdp"]:
            yield self.spread("fsdp", method)
        if self.spec.training.optimizer != "adamw" or method.type not in SHARDABLE["deepspeed"]:
            return
        stages = (1, 2, 3) if method.trains_the_model else (3,)
        zero = [Spread(strategy="deepspeed", ranks=self.spec.world_size, zero_stage=stage) for stage in stages if many]
        if self.spec.strategy.type == "deepspeed" and (own := self.spread("deepspeed")) not in zero:
            zero.append(own)
        yield from zero
