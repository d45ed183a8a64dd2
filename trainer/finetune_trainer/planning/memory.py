"""Bytes that one training process needs at its peak, in closed form.

    states       weights, and for what trains: gradients (in the dtype of the weights) and AdamW's two fp32 moments;
                 in bf16 a fully trained model keeps fp32 weights and autocasts: 4 + 4 + 8, and 2 for the copies
    activations  T·L·(16h + 4(h + 2k) + 8f) for a Llama block with SDPA in bf16, no recomputation; twice that in fp32.
                 h hidden, k width of keys, f intermediate, L layers, T tokens at once
                 partial: of the layers that train alone
    adapters     with dropout, dora and qlora PEFT's own layers run: on a bf16 base each keeps an fp32 copy of its
                 input, 4·T·d_in; the fused layers share their input with the base. dora keeps both its results and
                 forms the updated matrix; a bottleneck keeps its input twice and its inside twice
    qlora        0.516 bytes for each weight of the linear layers (4 + 8/64 + 32/(64·256) bits), one unpacked at a time
    loss         fused cross-entropy holds one chunk of logits, plus the gradient of the head where it trains

Against a memory tracker (SmolLM2-135M, T = 1024, bf16): activations without logits 742 MiB where 705 were measured.
The sum leaves out fragmentation and the interpreter; `Estimate.total` adds them as 10 % and a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.methods import Adapter, Lora, Method, Partial, Prefix, Prompt, PTuning
from finetune_trainer.planning.model import ModelShape

Precision = Literal["float32", "bfloat16"]

LOSS_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
RUNTIME_BYTES = {"cpu": 500 << 20, "cuda": 1536 << 20}
"""Interpreter and libraries; on a GPU context and NCCL."""

FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes for a weight in NF4: blocks of 64 share a scale in 8 bits, 256 of those share one in 32."""

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
    h, k, f = shape.hidden, shape.key_value, shape.intermediate
    per_token = recorded_layers(shape, method) * (16 * h + 4 * (h + 2 * k) + 8 * f) * width // 2
    per_token += _beside(shape, method, width)
    if method.type == "prefix":  # each layer joins the prefix and a row's keys and values into new tensors
        per_token += 2 * shape.layers * 2 * k * width
    if method.type == "probe":  # forward alone: what one block holds at once, and the states that are kept
        per_token = (16 * h + 4 * (h + 2 * k) + 8 * f) * width // 2 + 4 * 6 * h
    head_gradient = 4 * h * shape.vocabulary if full else 0
    return Estimate(
        weights=_weights(shape, method, trained, width),
        optimizer=12 * trained,
        activations=tokens * per_token + (_workspace(shape, method, width) if tokens else 0),
        loss=LOSS_CHUNK_BYTES[device] + head_gradient,
        runtime=RUNTIME_BYTES[device],
    )


def trained_parameters(shape: ModelShape, method: Method) -> int:
    """All; the last blocks; r·(d_in + d_out) for each adapted matrix, and d_out with dora; 2hm + m + h for each
    bottleneck; of n virtual tokens n·h, and for a prefix n·2·L·k."""
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
    if method.type == "partial":
        return sum(shape.blocks[-_last(shape, method) :])
    if method.type == "adapter":
        m = (method.adapter or Adapter()).bottleneck
        return _bottlenecks(shape, method) * (2 * shape.hidden * m + m + shape.hidden)
    lora = method.low_rank or Lora()
    magnitudes = 1 if method.type == "dora" else 0
    return sum(lora.rank * (d_out + d_in) + magnitudes * d_out for d_out, d_in in shape.adapted(lora.targets))


def recorded_layers(shape: ModelShape, method: Method) -> int:
    """Of which a pass keeps activations. How many `auto` comes to is measured in a pass through all."""
    fixed = method.type == "partial" and isinstance((method.partial or Partial()).layers, int)
    return _last(shape, method) if fixed else shape.layers


def _last(shape: ModelShape, method: Method) -> int:
    """Layers that partial trains. For auto a quarter, which gave nine tenths of full quality on BERT (1911.03090)."""
    layers = (method.partial or Partial()).layers
    return min(layers, shape.layers) if isinstance(layers, int) else -(-shape.layers // 4)


def _bottlenecks(shape: ModelShape, method: Method) -> int:
    return shape.layers * (2 if (method.adapter or Adapter()).placement == "houlsby" else 1)


def _weights(shape: ModelShape, method: Method, trained: int, width: int) -> int:
    if method.trains_the_model:
        return trained * (4 if width == 4 else 4 + 2) + (shape.parameters - trained) * width
    if method.type == "qlora":
        packed = sum(a * b for a, b in shape.linears.values())
        return int(packed * FOUR_BITS) + (shape.parameters - packed) * width + 4 * trained
    return shape.parameters * width + 4 * trained


def _beside(shape: ModelShape, method: Method, width: int) -> int:
    """Bytes a token that what was added to the model keeps."""
    if method.type == "adapter":
        bottleneck = (method.adapter or Adapter()).bottleneck
        return _bottlenecks(shape, method) * 2 * (shape.hidden + bottleneck) * width
    settings = method.low_rank
    if settings is None:
        return 0
    adapted = shape.adapted(settings.targets)
    copies = 0
    if width == 2 and (settings.dropout > 0 or method.type != "lora"):
        copies = sum(4 * d_in for _, d_in in adapted)
    results = sum((width + 4) * d_out for d_out, _ in adapted) if method.type == "dora" else 0
    return copies + results


def _workspace(shape: ModelShape, method: Method, width: int) -> int:
    """Bytes that the largest matrix needs for a moment: unpacked (qlora), or formed with its update in fp32 (dora)."""
    if method.type not in ("qlora", "dora"):
        return 0
    largest = max(((a * b, b) for a, b in shape.linears.values()), default=(0, 0))
    return largest[0] * width if method.type == "qlora" else 4 * (3 * largest[0] + largest[1] ** 2)


def human(size: float) -> str:
    """3221225472 → `3.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
