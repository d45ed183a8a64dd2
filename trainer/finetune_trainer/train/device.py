"""What the device of a process decides: precision, where the weights lie, and how many tokens are computed at once."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import torch

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.load import Datasets
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.registry import spread as join_spread
from finetune_trainer.planning.batch import micro_batch_tokens, tokens_of_a_step
from finetune_trainer.planning.machine import memory_limit
from finetune_trainer.planning.memory import Estimate, estimate
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.spread import WHOLE, Spread
from finetune_trainer.planning.strategy import ROOM, choose, of_gang
from finetune_trainer.regularization.replay import Replay
from finetune_trainer.transfer.evaluate import Layout


def choose_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def low_precision(spec: FineTuneJobSpec, device: torch.device) -> bool:
    """Whether products are of bfloat16, and not of float32."""
    if spec.training.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return spec.training.precision == "bfloat16"


def fitting_strategy(
    spec: FineTuneJobSpec,
    shape: ModelShape | None,
    gang: Strategy,
    device: torch.device,
    *,
    low: bool,
    longest_row: int,
) -> tuple[Strategy, Spread]:
    """Rank 0's choice, with what it leaves of the states on a process: processes may see other amounts of memory."""
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = memory_limit() // gang.place.local_world_size

    def need(spread: Spread) -> Estimate | None:
        if shape is None:
            return None
        tokens = max(longest_row, spec.training.micro_batch_tokens or 0)
        return estimate(
            shape,
            spec.method,
            precision="bfloat16" if low else "float32",
            device="cuda" if device.type == "cuda" else "cpu",
            tokens=tokens,
            row=longest_row if spec.data.packing else 0,
            spread=spread,
            recomputed=spec.training.activation_checkpointing,
            optimizer=spec.training.optimizer,
            regularization=spec.regularization,
            vocabulary=spec.vocabulary,
        )

    def fits(spread: Spread) -> bool:
        found = need(spread)
        return found is None or found.total <= ROOM * memory

    place = gang.place
    kind = choose(
        spec.strategy,
        spec.method,
        need=need(WHOLE),
        memory=memory,
        processes=place.world_size,
        terms=spec.regularization,
    )
    spread = of_gang(
        spec.strategy.model_copy(update={"type": kind}),
        nodes=place.world_size // place.local_world_size,
        processes_per_node=place.local_world_size,
        fits=fits,
    )
    spread = Spread(**gang.broadcast_json(asdict(spread)))
    strategy = join_spread(gang, spread.strategy, device=device, settings=spec.strategy, shards=spread.shards)
    return strategy, spread


def fitting_layout(
    spec: FineTuneJobSpec,
    data: Datasets,
    train: Corpus,
    shape: ModelShape | None,
    device: torch.device,
    *,
    low: bool,
    isolates: bool,
    processes: int,
    spread: Spread,
    replay: Replay | None = None,
) -> Layout:
    """The layout of a micro-batch of this process. `isolates`: whether the model keeps documents of one row apart."""
    on_gpu = device.type == "cuda"
    packing = spec.data.packing and isolates
    largest = np.sort(train.lengths)[-spec.training.batch_size :]  # no step has more than these
    if replay is not None:
        largest = np.concatenate([largest, np.sort(replay.corpus.lengths)[-math.ceil(replay.per_step) :]])
    longest = int(largest.max(initial=1))
    default = micro_batch_tokens(
        shape,
        spec.method,
        precision="bfloat16" if low else "float32",
        longest_row=longest,
        device="cuda" if on_gpu else "cpu",
        device_memory=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        spread=spread,
        recomputed=spec.training.activation_checkpointing,
        optimizer=spec.training.optimizer,
        regularization=spec.regularization,
        vocabulary=spec.vocabulary,
        most=tokens_of_a_step(
            rows=len(largest),
            processes=processes,
            longest_row=longest,
            row=float(largest.mean()) if len(largest) else 1.0,
            packing=packing,
        ),
    )
    return Layout(
        max_tokens=spec.training.micro_batch_tokens or default,
        sequence_length=spec.data.sequence_length,
        packing=packing,
        # A token that somebody added to the tokenizer alone has no embedding. Any other pads as well.
        pad_id=data.pad_id if shape is None or data.pad_id < shape.vocabulary else 0,
    )
