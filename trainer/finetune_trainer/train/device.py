"""What the device of a process decides: precision, where the weights lie, and how many tokens are computed at once."""

from __future__ import annotations

import torch

from finetune_api.spec import FineTuneJobSpec
from finetune_api.strategy import SHARDED
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.load import Datasets
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.join import spread
from finetune_trainer.planning.batch import micro_batch_tokens
from finetune_trainer.planning.machine import memory_limit
from finetune_trainer.planning.memory import estimate
from finetune_trainer.planning.model import find_shape
from finetune_trainer.planning.strategy import choose, of_gang
from finetune_trainer.store.models import LocalModel
from finetune_trainer.transfer.evaluate import Layout


def low_precision(spec: FineTuneJobSpec, device: torch.device) -> bool:
    """Whether products are of bfloat16, and not of float32."""
    if spec.training.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return spec.training.precision == "bfloat16"


def fitting_strategy(
    spec: FineTuneJobSpec, local: LocalModel, gang: Strategy, device: torch.device, *, low: bool
) -> Strategy:
    """Rank 0's choice: processes may see other amounts of memory."""
    shape = find_shape(local.path)
    need = None
    if shape is not None:
        need = estimate(
            shape,
            spec.method,
            precision="bfloat16" if low else "float32",
            device="cuda" if device.type == "cuda" else "cpu",
            tokens=spec.training.micro_batch_tokens or min(spec.data.sequence_length, 256),
            recomputed=spec.training.activation_checkpointing,
            optimizer=spec.training.optimizer,
        )
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = memory_limit() // gang.place.local_world_size
    kind = choose(spec.strategy, spec.method, need=need, memory=memory, processes=gang.place.world_size)
    return spread(gang, gang.broadcast_json(kind), device=device, settings=spec.strategy)


def fitting_layout(
    spec: FineTuneJobSpec,
    data: Datasets,
    train: Corpus,
    local: LocalModel,
    device: torch.device,
    *,
    low: bool,
    isolates: bool,
    strategy: Strategy,
) -> Layout:
    """Of a micro-batch of this process. `isolates`: whether the model keeps documents of one row apart."""
    on_gpu = device.type == "cuda"
    place, kind = strategy.place, strategy.name if strategy.name in SHARDED else "ddp"
    shape = find_shape(local.path)
    default = micro_batch_tokens(
        shape,
        spec.method,
        precision="bfloat16" if low else "float32",
        longest_row=int(train.lengths.max(initial=1)),
        device="cuda" if on_gpu else "cpu",
        device_memory=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        spread=of_gang(
            spec.strategy.model_copy(update={"type": kind}),
            nodes=place.world_size // place.local_world_size,
            processes_per_node=place.local_world_size,
        ),
        recomputed=spec.training.activation_checkpointing,
        optimizer=spec.training.optimizer,
    )
    return Layout(
        max_tokens=spec.training.micro_batch_tokens or default,
        sequence_length=spec.data.sequence_length,
        packing=spec.data.packing and isolates,
        # A token that somebody added to the tokenizer alone has no embedding. Any other pads as well.
        pad_id=data.pad_id if shape is None or data.pad_id < shape.vocabulary else 0,
    )
