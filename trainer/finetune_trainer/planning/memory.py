"""Bytes that one training process needs at its peak, in closed form.

    states       weights, and for what trains: gradients (in the dtype of the weights) and AdamW's two fp32 moments;
                 in bf16 a fully trained model keeps fp32 weights and autocasts: 4 + 4 + 8, and 2 for the copies
    activations  T·L·(16h + 4(h + 2k) + 8f) for a Llama block with SDPA in bf16, no recomputation; twice that in fp32.
                 h hidden, k width of keys, f intermediate, L layers, T tokens at once
    adapters     with dropout PEFT's own layers run: on a bf16 base each keeps an fp32 copy of its input, 4·T·d_in;
                 the fused layers share their input with the base
    loss         fused cross-entropy holds one chunk of logits, plus the gradient of the head where it trains

Against a memory tracker (SmolLM2-135M, T = 1024, bf16): activations without logits 742 MiB where 705 were measured.
The sum leaves out fragmentation and the interpreter; `Estimate.total` adds them as 10 % and a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.methods import Method, Prefix, Prompt, PTuning
from finetune_trainer.planning.model import ModelShape

Precision = Literal["float32", "bfloat16"]

LOSS_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
RUNTIME_BYTES = {"cpu": 500 << 20, "cuda": 1536 << 20}
"""Interpreter and libraries; on a GPU context and NCCL."""

OVERHEAD = 1.10


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes for one process."""

    weights: int
    optimizer: int
    """Gradients and moments of what trains."""
    activations: int
    loss: int
    runtime: int

    @property
    def least(self) -> int:
        """What no setting of the batch can save: a run that has less than this cannot start."""
        return self.weights + self.optimizer

    @property
    def total(self) -> int:
        return int((self.least + self.activations + self.loss) * OVERHEAD) + self.runtime


def estimate(
    shape: ModelShape, method: Method, *, precision: Precision, device: Literal["cpu", "cuda"], tokens: int
) -> Estimate:
    """For `tokens` computed at once (training.microBatchTokens)."""
    width = 2 if precision == "bfloat16" else 4
    trained = trained_parameters(shape, method)
    full = method.type == "full"
    if full:
        weights = shape.parameters * (4 if precision == "float32" else 4 + 2)
    else:
        weights = shape.parameters * width + 4 * trained
    h, k, f = shape.hidden, shape.key_value, shape.intermediate
    per_token = shape.layers * (16 * h + 4 * (h + 2 * k) + 8 * f) * width // 2
    if not full and precision == "bfloat16" and method.lora is not None and method.lora.dropout > 0:
        per_token += sum(4 * d_in for _, d_in in shape.adapted(_targets(method)))
    if method.type == "prefix":  # each layer joins the prefix and a row's keys and values into new tensors
        per_token += 2 * shape.layers * 2 * k * width
    if method.type == "probe":  # forward alone: what one block holds at once, and the states that are kept
        per_token = (16 * h + 4 * (h + 2 * k) + 8 * f) * width // 2 + 4 * 6 * h
    head_gradient = 4 * h * shape.vocabulary if full else 0
    return Estimate(
        weights=weights,
        optimizer=12 * trained,
        activations=tokens * per_token,
        loss=LOSS_CHUNK_BYTES[device] + head_gradient,
        runtime=RUNTIME_BYTES[device],
    )


def trained_parameters(shape: ModelShape, method: Method) -> int:
    """All; r·(d_in + d_out) for each adapted matrix; of n virtual tokens n·h, and for a prefix n·2·L·k."""
    if method.type == "full":
        return shape.parameters
    if method.type == "prompt":
        return (method.prompt or Prompt()).virtual_tokens * shape.hidden
    if method.type == "prefix":
        return (method.prefix or Prefix()).virtual_tokens * 2 * shape.layers * shape.key_value
    if method.type == "probe":
        return 0
    if method.type == "ptuning":
        settings = method.ptuning or PTuning()
        h, inner = shape.hidden, settings.hidden or shape.hidden
        return settings.virtual_tokens * h + (h + 1) * inner + (inner + 1) * inner + (inner + 1) * h
    rank = method.lora.rank if method.lora else 16
    return sum(rank * (d_out + d_in) for d_out, d_in in shape.adapted(_targets(method)))


def _targets(method: Method) -> str:
    return method.lora.targets if method.lora else "all-linear"


def human(size: float) -> str:
    """3221225472 → `3.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
