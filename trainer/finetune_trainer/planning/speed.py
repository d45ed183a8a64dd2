"""Seconds for a step, from operations and bandwidths: an order of magnitude to choose by, not a promise.

passes     a token meets N parameters, of experts those that it passes: 6N operations where all trains; 4N + 6·N_t
           next to a frozen base; 2N below the lowest layer that trains; and 12·L·h·row/2 for attention. Activation
           checkpointing: 2N more, of the layers that train
optimizer  AdamW reads and writes weights, gradients and moments: about 28 bytes for each parameter that trains.
           With small steps this is most of full fine-tuning: 3.2 billion parameters at 840 tokens per step. With
           8-bit AdamW, moments are unpacked and packed in some twenty passes over memory
gang       gradients summed once a step; sharded weights gathered twice a pass, and their gradients scattered. Where a
           node's processes share the model, that stays within the node, and a shard's gradients cross between nodes
"""

from __future__ import annotations

import math

from finetune_api.methods import Method
from finetune_api.spec import Optimizer
from finetune_trainer.planning.devices import Device
from finetune_trainer.planning.footprints import footprint_of
from finetune_trainer.planning.memory import Precision, model_bytes, trained_parameters
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.spread import Spread

UPDATE_BYTES = {"adamw": 28, "adamw8bit": 200}


def step_seconds(
    shape: ModelShape,
    method: Method,
    *,
    precision: Precision,
    device: Device,
    spread: Spread,
    tokens: float,
    at_once: int,
    row: int,
    network: float,
    recomputed: bool = False,
    optimizer: Optimizer = "adamw",
) -> float:
    """Of an optimizer step over `tokens`, on all ranks together; each computes `at_once` in rows of `row`.
    `network`: bandwidth between ranks in bytes per second."""
    mine = tokens / spread.ranks
    passes = max(1, math.ceil(mine / at_once))
    each = mine / passes
    reached = device.utilisation * each / (each + device.ramp)
    operations = token_operations(shape, method, row=row)
    if recomputed and shape.layers:
        operations += 2 * shape.active * footprint_of(method).layers(shape, method) / shape.layers
    compute = mine * operations / (device.peak(precision) * reached)
    trained = trained_parameters(shape, method)
    owned = trained / (spread.shards or spread.ranks) if spread.shards_weights else trained
    update = UPDATE_BYTES[optimizer] * owned / device.bandwidth
    model = model_bytes(shape, method, 2 if precision == "bfloat16" else 4)
    whole = 0 if method.trains_the_model else trained
    within = (spread.shards or spread.ranks) < spread.ranks and not spread.crosses
    near = device.link if within else network
    return compute + update + _talk(model, trained, whole, spread, passes=passes, near=near, far=network)


def token_operations(shape: ModelShape, method: Method, *, row: int) -> float:
    """Floating-point operations for one token of training."""
    return footprint_of(method).operations(shape, method, row=row)


def _talk(model: int, trained: int, whole: int, spread: Spread, *, passes: int, near: float, far: float) -> float:
    """Seconds of a step in which a rank sends. `model`: bytes of all weights; `whole`: of what trains, parameters that
    every rank holds; `near`: bytes per second between those that share a weight, `far` between all others."""
    if spread.ranks == 1:
        return 0
    if not spread.shards_weights:
        return _around(spread.ranks) * 2 * 4 * trained / far
    sharing = spread.shards or spread.ranks
    gathered = passes * (2 * model + 4 * (trained - whole))
    across = passes * 4 * (trained - whole) / sharing
    return (
        _around(sharing) * gathered / near
        + _around(spread.ranks // sharing) * 2 * across / far
        + _around(spread.ranks) * 2 * 4 * whole / far
    )


def _around(ranks: int) -> float:
    """The share of a tensor that a rank sends when it goes around once: a sum goes twice."""
    return (ranks - 1) / ranks
