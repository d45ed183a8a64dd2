"""Bytes that one training process needs at its peak, in closed form.

    states       weights, and for what trains: gradients (in the dtype of the weights) and AdamW's two fp32 moments;
                 in bf16 a fully trained model keeps fp32 weights and autocasts: 4 + 4 + 8, and 2 for the copies.
                 `spread` defines how strategies shard them. adamw8bit: two bytes and, for each block of
                 256, two scales of four
    activations  of a Llama block without recomputation, for each token, h hidden, k width of keys, f intermediate:
                 each norm its input in fp32, its normalised values where its weight trains, its result where a matrix
                 after it is trained or adapted (autocast: see `block_bytes`); queries, keys, values and result of
                 the attention; 3f of the feed-forward, and f more where the matrix after it is trained or adapted. In
                 bf16 and all trained that is 20h + 4k + 8f bytes
                 experts: f of all that a token passes, and for each of them its result, and its input where it trains
                 latent keys (DeepSeek): by the width of queries; short on a CPU, whose attention keeps its weights then
                 activation checkpointing: of each block h, and one block as above
    packing      documents in one row are kept apart by a mask: every layer keeps its own, and keys and values as wide
                 as queries
    continueFrom a frozen adapter under the one that trains, in fp32 (`earlier_adapter`)
    vocabulary   rows of the embeddings that train next to an adapter: states of what trains, in fp32
    methods      `footprints` defines what each one trains and keeps
    4 bits       0.516 bytes for each weight of the linear layers (4 + 8/64 + 32/(64·256) bits)
    klToBase     six buffers of a chunk of logits (two of logits, two distributions, their difference and product), and
                 the hidden states of the base model with their gradient
    l2sp         a copy of what trains, in fp32, unless the method adds low-rank updates
    drift        inputs of the adapted matrices for 512 tokens, in fp32
    ewc          two such copies; with low-rank updates one of the linear layers of the blocks, in fp32
    loss         fused cross-entropy holds one chunk of logits, plus the gradient of the head where it trains; or, if
                 that is more, the gradients inside one block

    snapshot     the copy of what trains, with its moments, that a checkpoint is written from; kept from save to save

Against a memory tracker (SmolLM2-135M, T = 1024, bf16): activations without logits 712 MiB where 705 were measured.
The sum leaves out fragments and the interpreter; `Estimate.total` adds them as a share and a constant. On a CPU malloc
keeps a fifth more than is asked for (1.13 to 1.25 were measured), and a run of a tiny model has 700 MiB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from finetune_api.methods import Method
from finetune_api.regularization import DRIFT_TOKENS, NO_TERMS, Regularization
from finetune_api.spec import Optimizer
from finetune_api.vocabulary import Vocabulary
from finetune_trainer.planning.footprints import block_bytes, footprint_of
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.spread import WHOLE, Parts, Spread

Precision = Literal["float32", "bfloat16"]

LOSS_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
DIVERGENCE_CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Of fp32 logits, see `regularization.kl_to_base`."""
RUNTIME_BYTES = {"cpu": 700 << 20, "cuda": 1536 << 20}
"""Interpreter and libraries; on a GPU context and NCCL."""

OVERHEAD = {"cpu": 1.2, "cuda": 1.1}
"""Memory that an allocator holds for each byte of tensors."""

FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes for a weight in NF4: blocks of 64 share a scale in 8 bits, 256 of those share one in 32."""

MOMENT_BYTES = {"adamw": 8.0, "adamw8bit": 2 + 8 / 256}
"""Of one parameter that trains: its two moments."""


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
    """In the memory of the node: what was offloaded, and the largest matrix of a merged model."""
    export: int = 0
    """Of that matrix, where there is no other memory than the process's."""
    snapshot: int = 0
    """Of a checkpoint, where there is no other memory."""
    overhead: float = OVERHEAD["cuda"]

    @property
    def least(self) -> int:
        """What no setting of the batch can save: a run that has less than this cannot start."""
        return self.weights + self.optimizer + self.gathered

    @property
    def peak(self) -> int:
        """Of the tensors of a step, or of the export."""
        return self.least + max(self.activations + self.loss, self.export)

    @property
    def total(self) -> int:
        return int((self.peak + self.snapshot) * self.overhead) + self.runtime


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
    regularization: Regularization = NO_TERMS,
    vocabulary: Vocabulary | None = None,
) -> Estimate:
    """For `tokens` computed at once (training.microBatchTokens), in rows of `row` tokens that documents share; 0 where
    each document has a row of its own. `merged`: base and adapter are written as one model in the end.
    `recomputed`: with activation checkpointing."""
    width = 2 if precision == "bfloat16" else 4
    footprint = footprint_of(method)
    rows = vocabulary_parameters(shape, method, vocabulary)
    trained = footprint.trained(shape, method) + rows
    h, f = shape.hidden, shape.intermediate
    autocast = width == 2 and method.trains_the_model
    kept = footprint.kept(shape, method, width, row=row)
    block = block_bytes(shape, kept, width, trains=method.trains_the_model, row=row, autocast=autocast)
    layers = footprint.layers(shape, method)
    per_token = layers * block + kept.added
    run_again = 0
    if recomputed:  # of each block its input; what it keeps when it runs again is there after the loss
        per_token, run_again = layers * h * (4 if autocast else width), per_token // max(layers, 1)
    per_token += 3 * h * width + kept.around
    if kept.forward is not None:
        per_token = kept.forward
    # Of rows that train alone: the sum of a pass, and the values in the dtype of the model.
    head_gradient = 4 * h * shape.vocabulary if method.traits.trains == "model" else (4 + width) * rows
    logits = min(LOSS_CHUNK_BYTES[device], 4 * shape.vocabulary * max(tokens, 1))
    logits = (
        logits if width == 4 else logits * 3 // 2
    ) + 2 * h * width * tokens  # in bf16 also as the product left them
    if regularization.kl_to_base is not None:
        logits += (
            6 * min(DIVERGENCE_CHUNK_BYTES[device], 4 * shape.vocabulary * max(tokens, 1)) + 2 * h * width * tokens
        )
    inside_a_block = ((3 * f + 2 * h) * width + run_again) * tokens
    parts = _parts(shape, method, trained, width, spread)
    if regularization.weighs_matrices(method.traits):
        parts = replace(parts, frozen=parts.frozen + 4 * shape.packed)
    if regularization.drift is not None:  # of the inputs of attention, its last matrix, and both halves of the MLP
        parts = replace(parts, frozen=parts.frozen + 4 * DRIFT_TOKENS * shape.layers * (3 * h + f))
    parts = replace(
        parts,
        moment_bytes=MOMENT_BYTES[optimizer],
        copies=regularization.kept_copies(method.traits),
    )
    if method.traits.scalable:
        parts = replace(parts, frozen=parts.frozen + 4 * shape.frozen_adapter)
    states = spread.share(parts, low=width == 2, trains_the_model=method.trains_the_model, recomputed=recomputed)
    on_the_host = device == "cuda"
    export = footprint.merging(shape, method) if merged else 0
    snapshot = spread.snapshot(parts, trains_the_model=method.trains_the_model)
    return Estimate(
        weights=states.weights if on_the_host else states.weights + states.host,
        optimizer=states.gradients + states.moments,
        activations=tokens * per_token + (footprint.workspace(shape, method, width) if tokens else 0),
        loss=max(logits, inside_a_block) + head_gradient,
        runtime=RUNTIME_BYTES[device],
        gathered=states.gathered,
        host=states.host + export if on_the_host else 0,
        export=0 if on_the_host else export,
        snapshot=0 if on_the_host else snapshot,
        overhead=OVERHEAD[device],
    )


def trained_parameters(shape: ModelShape, method: Method, vocabulary: Vocabulary | None = None) -> int:
    """Parameters that train."""
    return footprint_of(method).trained(shape, method) + vocabulary_parameters(shape, method, vocabulary)


def vocabulary_parameters(shape: ModelShape, method: Method, vocabulary: Vocabulary | None) -> int:
    """Of the rows of the embeddings that train next to the method, and of the head where it has a matrix of its own."""
    if vocabulary is None or not method.traits.new_rows or method.traits.trains == "model":
        return 0
    matrix = shape.vocabulary * shape.hidden
    matrices = 2 if shape.language - sum(shape.blocks) >= 2 * matrix else 1
    return matrices * vocabulary.planned_rows * shape.hidden


def model_bytes(shape: ModelShape, method: Method, width: int) -> int:
    """Of all weights as products find them: what sharded ranks gather in a pass."""
    packed = shape.packed if method.traits.four_bits else 0
    return int(packed * FOUR_BITS) + (shape.parameters - packed) * width


def _parts(shape: ModelShape, method: Method, trained: int, width: int, spread: Spread) -> Parts:
    """Parameters, and the bytes of those that stay as they are."""
    model = model_bytes(shape, method, width)
    gathered = 0
    if shape.blocks:  # two blocks and what lies outside of all, at most the whole
        outside = width * (shape.language - sum(shape.blocks))
        gathered = min(model, outside + (model - outside) * 2 * max(shape.blocks) // sum(shape.blocks))
    if method.trains_the_model:
        kept = width if spread.strategy == "ddp" else 4  # only whole weights go back to 16 bits where they are frozen
        return Parts(trained=trained, frozen=(shape.parameters - trained) * kept, gathered=gathered)
    return Parts(trained=trained, frozen=model, gathered=gathered)


def human(size: float) -> str:
    """3221225472 → `3.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
