"""How a strategy shares states among ranks: bytes that each rank holds.

ddp         everything, on every rank
fsdp        the model in shards, with gradients and moments where it trains; adapters whole; blocks are gathered to
            compute and freed after. Where a node has several processes, as few nodes as can share a model, and all
            others hold replicas (see `strategy`)
deepspeed   ZeRO 1: moments in shards; 2: gradients too; 3: weights too. Its paper (1910.02054, figure 1) counts
            2 + 2 + 12 bytes for weights, gradients and moments with a second copy of the weights in fp32. Here
            weights that train are in fp32 themselves: 4 + 4 + 12, of which stage 3 needs no second copy (8), unless
            moments are offloaded. Offloaded parts are in the memory of the node
autocast    in bf16 the copies that products of trained weights are made of, 2 bytes each, live from the forward to the
            backward: whole on every rank, but not under fsdp, which gathers weights in bf16, and but for those of
            blocks that run again, which live as long as one block
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

StrategyName = Literal["ddp", "fsdp", "deepspeed"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Of a model with a method: parameters that train; bytes that stay, and that are whole for a moment."""

    trained: int
    frozen: int
    gathered: int
    moment_bytes: float = 8.0
    """Both moments of one parameter that trains."""
    copies: int = 0
    """Of what trains, in fp32, that stay."""


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes on one rank."""

    weights: int
    gradients: int
    moments: int
    gathered: int = 0
    host: int = 0


@dataclass(frozen=True, kw_only=True)
class Spread:
    strategy: StrategyName = "ddp"
    ranks: int = 1
    shards: int | None = None
    """How many of the ranks share a weight; None: all."""
    crosses: bool = False
    """Whether those that share a weight, and are fewer than all, are on several nodes."""
    zero_stage: int = 0
    """Of deepspeed: 0 to 3."""
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @property
    def label(self) -> str:
        """`deepspeed zero 3 offload`."""
        if self.strategy != "deepspeed":
            return self.strategy
        offload = " offload" if self.offload_optimizer or self.offload_parameters else ""
        return f"deepspeed zero {self.zero_stage}{offload}"

    @property
    def shards_weights(self) -> bool:
        return self.strategy == "fsdp" or (self.strategy == "deepspeed" and self.zero_stage == 3)

    def share(self, parts: Parts, *, low: bool, trains_the_model: bool, recomputed: bool = False) -> States:
        """`low`: products in bf16. Adapters are fp32 whatever the base is. `recomputed`: blocks run again."""
        n = parts.trained
        copies, moments = 2 * n if low and trains_the_model else 0, math.ceil(parts.moment_bytes * n)
        if recomputed and parts.gathered:
            copies = min(copies, parts.gathered)
        if self.strategy == "deepspeed":
            return self._zero(parts, copies)
        if self.strategy == "fsdp":
            own = self._sharing if trains_the_model else 1
            weights = self._part(parts.frozen) + -(-4 * n * (1 + parts.copies) // own)
            return States(
                weights=weights, gradients=-(-4 * n // own), moments=-(-moments // own), gathered=parts.gathered
            )
        weights = parts.frozen + 4 * n * (1 + parts.copies) + copies
        return States(weights=weights, gradients=4 * n, moments=moments)

    def snapshot(self, parts: Parts, *, trains_the_model: bool) -> int:
        """Bytes of a checkpoint's copy: weights in fp32 and moments, of all that trains, or under fsdp of a share."""
        own = self._sharing if self.strategy == "fsdp" and trains_the_model else 1
        return -(-math.ceil((4 + parts.moment_bytes) * parts.trained) // own)

    def _zero(self, parts: Parts, copies: int) -> States:
        stage, n = self.zero_stage, parts.trained
        second = stage < 3 or self.offload_optimizer
        weights, gradients, moments = parts.frozen + 4 * n, 4 * n, (12 if second else 8) * n
        moments = self._part(moments) if stage >= 1 else moments
        gradients = self._part(gradients) if stage >= 2 else gradients
        weights = self._part(weights) if stage >= 3 else weights
        host = (moments if self.offload_optimizer else 0) + (weights if self.offload_parameters else 0)
        return States(
            weights=copies + (0 if self.offload_parameters else weights),
            gradients=gradients,
            moments=0 if self.offload_optimizer else moments,
            gathered=parts.gathered if stage >= 3 else 0,
            host=host,
        )

    def _part(self, size: int) -> int:
        return -(-size // self._sharing)

    @property
    def _sharing(self) -> int:
        return self.shards or self.ranks


WHOLE = Spread()
