"""Bytes that one training process needs at its peak, in closed form.

    states       weights, and for what trains: gradients (in the dtype of the weights) and AdamW's two fp32 moments;
                 in bf16 a fully trained model keeps fp32 weights and autocasts: 4 + 4 + 8, and 2 for the copies.
                 How strategies share them among ranks is told in `spread`. adamw8bit: two bytes and, for each block of
                 256, two scales of four
    activations  of a Llama block without recomputation, for each token, h hidden, k width of keys, f intermediate:
                 each norm its input in fp32, its normalised values where its weight trains, its result where a matrix
                 behind it trains or is adapted (autocast: see `recorded_bytes`); queries, keys, values and result of
                 the attention; 3f of the feed-forward, and f more where the matrix behind it trains or is adapted. In
                 bf16 and all trained that is 20h + 4k + 8f bytes. partial: of the layers that train alone
                 experts: f of all that a token passes, and for each of them its result, and its input where it trains
                 latent keys (DeepSeek): by the width of queries; short on a CPU, whose attention keeps its weights then
                 activation checkpointing: of each block h, and one block as above
    packing      documents in one row are kept apart by a mask: every layer keeps its own, and keys and values as wide
                 as queries
    adapters     with dropout, dora and qlora PEFT's own layers run: on a bf16 base each keeps an fp32 copy of its
                 input, 4·T·d_in; the fused layers share their input with the base. dora keeps both its results and
                 forms the updated matrix; a bottleneck keeps its input twice and its inside twice
    qlora        0.516 bytes for each weight of the linear layers (4 + 8/64 + 32/(64·256) bits), one unpacked at a time
    loss         fused cross-entropy holds one chunk of logits, plus the gradient of the head where it trains; or, if
                 that is more, the gradients inside one block

Against a memory tracker (SmolLM2-135M, T = 1024, bf16): activations without logits 712 MiB where 705 were measured.
The sum leaves out fragmentation and the interpreter; `Estimate.total` adds them as 10 % and a constant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from finetune_api.methods import Adapter, Lora, Method, Partial, Prefix, Prompt, PTuning
from finetune_api.spec import Optimizer
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.spread import WHOLE, Parts, Spread

Precision = Literal["float32", "bfloat16"]

LOSS_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
RUNTIME_BYTES = {"cpu": 500 << 20, "cuda": 1536 << 20}
"""Interpreter and libraries; on a GPU context and NCCL."""

FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes for a weight in NF4: blocks of 64 share a scale in 8 bits, 256 of those share one in 32."""

MOMENT_BYTES = {"adamw": 8.0, "adamw8bit": 2 + 8 / 256}
"""Of one parameter that trains: its two moments."""

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
    gathered: int = 0
    """Of sharded weights, what is whole for a moment: the block that computes, the next, embeddings and head."""
    host: int = 0
    """Beside the GPU's, in the memory of the node: what was offloaded, and the largest matrix of a merged model."""
    export: int = 0
    """Of that matrix, where there is no other memory than the process's."""

    @property
    def least(self) -> int:
        """What no setting of the batch can save: a run that has less than this cannot start."""
        return self.weights + self.optimizer + self.gathered

    @property
    def peak(self) -> int:
        """Of the tensors alone."""
        return self.least + max(self.activations + self.loss, self.export)

    @property
    def total(self) -> int:
        return int(self.peak * OVERHEAD) + self.runtime


def estimate(
    shape: ModelShape,
    method: Method,
    *,
    precision: Precision,
    device: Literal["cpu", "cuda"],
    tokens: int,
    row: int = 0,
    spread: Spread = WHOLE,
    merged: bool = False,
    recomputed: bool = False,
    optimizer: Optimizer = "adamw",
) -> Estimate:
    """For `tokens` computed at once (training.microBatchTokens), in rows of `row` tokens that documents share; 0 where
    each document has a row of its own. `merged`: base and adapter are written as one model in the end.
    `recomputed`: with activation checkpointing."""
    width = 2 if precision == "bfloat16" else 4
    trained = trained_parameters(shape, method)
    full = method.type == "full"
    h, f = shape.hidden, shape.intermediate
    autocast = width == 2 and method.trains_the_model
    block = recorded_bytes(shape, method, width, row=row, autocast=autocast)
    layers = recorded_layers(shape, method)
    per_token = layers * block + _beside(shape, method, width)
    run_again = 0
    if recomputed:  # of each block its input; what it keeps when it runs again is there after the loss
        per_token, run_again = layers * h * (4 if autocast else width), per_token // max(layers, 1)
    per_token += 3 * h * width
    if method.type == "prefix":  # each layer joins the prefix and a row's keys and values into new tensors
        per_token += 2 * shape.layers * 2 * shape.key_value * width
    if method.type == "probe":  # forward alone: what one block holds at once, and the states that are kept
        per_token = recorded_bytes(shape, Method(type="full"), width, row=row) + 4 * 6 * h
    head_gradient = 4 * h * shape.vocabulary if full else 0
    logits = min(LOSS_CHUNK_BYTES[device], 4 * shape.vocabulary * max(tokens, 1))
    logits = (
        logits if width == 4 else logits * 3 // 2
    ) + 2 * h * width * tokens  # in bf16 also as the product left them
    inside_a_block = ((3 * f + 2 * h) * width + run_again) * tokens
    parts = replace(_parts(shape, method, trained, width, spread), moment_bytes=MOMENT_BYTES[optimizer])
    states = spread.share(parts, low=width == 2, trains_the_model=method.trains_the_model, recomputed=recomputed)
    on_the_host = device == "cuda"
    export = _merging(shape, method) if merged else 0
    return Estimate(
        weights=states.weights if on_the_host else states.weights + states.host,
        optimizer=states.gradients + states.moments,
        activations=tokens * per_token + (_workspace(shape, method, width) if tokens else 0),
        loss=max(logits, inside_a_block) + head_gradient,
        runtime=RUNTIME_BYTES[device],
        gathered=states.gathered,
        host=states.host + export if on_the_host else 0,
        export=0 if on_the_host else export,
    )


def recorded_bytes(shape: ModelShape, method: Method, width: int, *, row: int = 0, autocast: bool = False) -> int:
    """Bytes that one decoder block keeps of a token. `width`: of what is computed; with `autocast` norms are fp32, and
    every matrix keeps a copy of its input of its own."""
    h, k, f = shape.hidden, shape.key_value, shape.intermediate
    q = shape.query or h
    trains = method.trains_the_model
    targets = method.low_rank.targets if method.low_rank else ""
    attention = trains or targets in ("all-linear", "attention")
    mlp = trains or (targets in ("all-linear", "mlp") and bool(shape.adapted("mlp")))
    if autocast:
        norms = 2 * (4 + 4) * h + 5 * h * width
    else:
        norms = 2 * 4 * h + (2 * h * width if trains else 0) + (attention + mlp) * h * width
    apart = 2 * q * width + row * (4 if autocast else width) if row else 2 * k * width
    chosen = shape.passed * (1 + trains) * h * width
    return norms + 2 * q * width + apart + (3 + mlp) * f * width + chosen


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
        return sum(shape.blocks[-trained_layers(shape, method) :])
    if method.type == "adapter":
        m = (method.adapter or Adapter()).bottleneck
        return _bottlenecks(shape, method) * (2 * shape.hidden * m + m + shape.hidden)
    lora = method.low_rank or Lora()
    magnitudes = 1 if method.type == "dora" else 0
    adapted = shape.adapted(lora.targets, lora.layers)
    return sum(lora.rank * (d_out + d_in) + magnitudes * d_out for d_out, d_in in adapted)


def model_bytes(shape: ModelShape, method: Method, width: int) -> int:
    """Of all weights as products find them: what sharded ranks gather in a pass."""
    packed = shape.packed if method.type == "qlora" else 0
    return int(packed * FOUR_BITS) + (shape.parameters - packed) * width


def recorded_layers(shape: ModelShape, method: Method) -> int:
    """Of which a pass keeps activations. How many `auto` comes to is measured in a pass through all."""
    if method.low_rank and method.low_rank.layers:
        return min(method.low_rank.layers, shape.layers)
    fixed = method.type == "partial" and isinstance((method.partial or Partial()).layers, int)
    return trained_layers(shape, method) if fixed else shape.layers


def trained_layers(shape: ModelShape, method: Method) -> int:
    """Layers that partial trains. For auto a quarter, which gave nine tenths of full quality on BERT (1911.03090)."""
    layers = (method.partial or Partial()).layers
    return min(layers, shape.layers) if isinstance(layers, int) else -(-shape.layers // 4)


def _bottlenecks(shape: ModelShape, method: Method) -> int:
    return shape.layers * (2 if (method.adapter or Adapter()).placement == "houlsby" else 1)


def _parts(shape: ModelShape, method: Method, trained: int, width: int, spread: Spread) -> Parts:
    """Parameters, and the bytes of those that stay as they are."""
    model = model_bytes(shape, method, width)
    gathered = 0
    if shape.blocks:  # two blocks and what lies outside of all, at most the whole
        outside = width * (shape.parameters - sum(shape.blocks))
        gathered = min(model, outside + (model - outside) * 2 * max(shape.blocks) // sum(shape.blocks))
    if method.trains_the_model:
        kept = width if spread.strategy == "ddp" else 4  # only whole weights go back to 16 bits where they are frozen
        return Parts(trained=trained, frozen=(shape.parameters - trained) * kept, gathered=gathered)
    return Parts(trained=trained, frozen=model, gathered=gathered)


def _beside(shape: ModelShape, method: Method, width: int) -> int:
    """Bytes a token that what was added to the model keeps."""
    if method.type == "adapter":
        bottleneck = (method.adapter or Adapter()).bottleneck
        return _bottlenecks(shape, method) * 2 * (shape.hidden + bottleneck) * width
    settings = method.low_rank
    if settings is None:
        return 0
    adapted = shape.adapted(settings.targets, settings.layers)
    copies = settings.rank * width * len(adapted)  # what lies between the two matrices
    if settings.dropout > 0:  # PEFT keeps what is left of each input, the mask, and in bf16 more
        copies += int(sum((5 if width == 4 else 6.5) * d_in for _, d_in in adapted))
    elif width == 2 and method.type != "lora":
        copies += sum(4 * d_in for _, d_in in adapted)
    results = sum((width + 4) * d_out for d_out, _ in adapted) if method.type == "dora" else 0
    return copies + results


def _workspace(shape: ModelShape, method: Method, width: int) -> int:
    """Bytes that the largest matrix needs for a moment: unpacked (qlora), or formed with its update in fp32 (dora)."""
    if method.type not in ("qlora", "dora"):
        return 0
    largest = max(((a * b, b) for a, b in shape.linears.values()), default=(0, 0))
    return largest[0] * width if method.type == "qlora" else 4 * (3 * largest[0] + largest[1] ** 2)


def _merging(shape: ModelShape, method: Method) -> int:
    """Bytes of the largest adapted matrix while it is merged: in fp32, and twice as it is stored (at most fp32)."""
    if method.low_rank is None:
        return 0
    return 12 * max((a * b for a, b in shape.adapted(method.low_rank.targets, method.low_rank.layers)), default=0)


def human(size: float) -> str:
    """3221225472 → `3.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
