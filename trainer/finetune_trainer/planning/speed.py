"""Seconds for a step, from operations and bandwidths: an order of magnitude to choose by, not a promise.

passes     a token costs 6N operations where all trains; 4N + 6·N_t beside a frozen base; 2N below the lowest layer
           that trains; and 12·L·h·row/2 for attention. Activation checkpointing: 2N more, of the layers that train
optimizer  AdamW reads and writes weights, gradients and moments: about 28 bytes for each parameter that trains.
           With small steps this is most of full fine-tuning: 3.2 billion parameters at 840 tokens a step
gang       gradients summed once a step; sharded weights gathered twice a pass, and gradients scattered
"""

from __future__ import annotations

import math

from finetune_api.methods import Method
from finetune_trainer.planning.devices import Device
from finetune_trainer.planning.memory import Precision, recorded_layers, trained_parameters
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.spread import Spread

ADAMW_BYTES = 28
DORA = 1.26
"""PEFT's comparison on Llama-3.2-3B: 1190 s against LoRA's 942."""


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
) -> float:
    """Of an optimizer step over `tokens`, on all ranks together; each computes `at_once` in rows of `row`.
    `network`: bytes a second between ranks."""
    mine = tokens / spread.ranks
    passes = max(1, math.ceil(mine / at_once))
    each = mine / passes
    reached = device.utilisation * each / (each + device.ramp)
    operations = token_operations(shape, method, row=row)
    if recomputed and shape.layers:
        operations += 2 * shape.parameters * recorded_layers(shape, method) / shape.layers
    compute = mine * operations / (device.peak(precision) * reached)
    trained = trained_parameters(shape, method)
    owned = trained / (spread.shards or spread.ranks) if spread.shards_weights else trained
    update = ADAMW_BYTES * owned / device.bandwidth
    return compute + update + _moved(shape, trained, spread, precision=precision, passes=passes) / network


def token_operations(shape: ModelShape, method: Method, *, row: int) -> float:
    """Floating-point operations for one token of training."""
    n = shape.parameters
    trained = trained_parameters(shape, method)
    attention = 12 * shape.layers * shape.hidden * row / 2
    if method.type == "probe":
        return 2 * n + attention / 3
    if method.type == "full":
        return 6 * n + attention
    if method.type == "partial":
        head = shape.vocabulary * shape.hidden
        return 2 * n + 4 * trained + 2 * head + attention * (1 + 2 * recorded_layers(shape, method) / shape.layers) / 3
    if (passed := recorded_layers(shape, method)) < shape.layers and shape.blocks:
        above = sum(shape.blocks[-passed:]) + shape.vocabulary * shape.hidden
        attention *= (1 + 2 * passed / shape.layers) / 3
        return (2 * n + 2 * above + 6 * trained + attention) * (DORA if method.type == "dora" else 1)
    return (4 * n + 6 * trained + attention) * (DORA if method.type == "dora" else 1)


def _moved(shape: ModelShape, trained: int, spread: Spread, *, precision: Precision, passes: int) -> float:
    """Bytes that a rank sends in a step."""
    if spread.ranks == 1:
        return 0
    width = 2 if precision == "bfloat16" else 4
    others = (spread.ranks - 1) / spread.ranks
    gathered = passes * 2 * width * shape.parameters if spread.shards_weights else 0
    summed = 4 * trained * (passes if spread.shards_weights else 2)
    return others * (gathered + summed)
