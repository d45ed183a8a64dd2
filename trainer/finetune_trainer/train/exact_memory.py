"""The peak of one training step, followed tensor by tensor: `finetune plan --exact` runs this as a process of its own.

The trainer's own network, method, loss and optimizer state are made of fake tensors, which have shapes and no memory,
and torch's MemTracker adds up what lives at once. It is slow (a minute of CPU for 3 billion parameters) and needs no
GPU. Its device is always the CPU, for a torch without CUDA cannot fake one: the attention's workspace is that of a CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from finetune_api.failures import FinetuneError
from finetune_api.methods import Method
from finetune_api.spec import Optimizer
from finetune_trainer.decoder_blocks import body_of
from finetune_trainer.methods.base import Base
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.single import Single
from finetune_trainer.planning.memory import Precision

from .activation_checkpointing import recompute_blocks
from .loss import fused_cross_entropy
from .method_support import network_of
from .model import cheap_products
from .process_exit import exit_process

CPU = torch.device("cpu")


def main(argv: list[str] | None = None) -> int:
    """Prints `{"peak": bytes}`, or `{"error": …}` with exit code 1 for a model or method that cannot be followed."""
    parser = argparse.ArgumentParser(prog="finetune_trainer.train.exact_memory")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--method", required=True, help="as JSON")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--optimizer", choices=get_args(Optimizer), default="adamw")
    parser.add_argument("--recomputed", action="store_true", help="with activation checkpointing")
    options = parser.parse_args(argv)
    method = Method.model_validate_json(options.method)
    try:
        peak = tracked(
            options.model,
            method,
            precision=options.precision,
            tokens=options.tokens,
            recomputed=options.recomputed,
            optimizer=options.optimizer,
        )
    except FinetuneError as error:
        print(json.dumps({"error": error.message}))
        return 1
    except Exception as error:  # whatever an architecture does that fake tensors cannot
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}))
        return 1
    print(json.dumps({"peak": peak}))
    return 0


def tracked(
    folder: Path,
    method: Method,
    *,
    precision: Precision,
    tokens: int,
    recomputed: bool = False,
    optimizer: Optimizer = "adamw",
) -> int:
    """Bytes at the peak of a step of one process that holds everything, on one row of `tokens` tokens."""
    low = precision == "bfloat16"
    stored = torch.bfloat16 if low and not method.trains_the_model else torch.float32
    with torch.device("meta"):  # PEFT cannot attach to fake tensors: they come after
        network = network_of(folder, stored)
        attached = method_of(method).attach(network, seed=1, base=Base("model", stored))
    if low:
        for parameter in network.parameters():
            if not parameter.requires_grad:  # as in the files of almost every model
                parameter.data = parameter.data.bfloat16()
    network.train()
    if recomputed:
        recompute_blocks(network, lowest=attached.lowest_layer)
    tracker = MemTracker()
    with FakeTensorMode(allow_non_fake_inputs=True), tracker:
        swapped = _without_memory(network)
        trainable = {name: swapped[id(parameter)] for name, parameter in attached.trainable.items()}
        for parameter in network.parameters():
            if not parameter.requires_grad:  # the tracker would hook it, which autograd refuses
                tracker._param_to_grad_hook_handles[parameter] = cast(Any, (_NoHook(), _NoHook()))
        weights = Single().weights(network, trainable, weight_decay=0.0, optimizer=optimizer)
        with cheap_products(CPU, torch.bfloat16 if low and method.trains_the_model else None):
            weights.backward(_nats(network, tokens), last=True)
    return int(tracker.get_tracker_snapshot("peak")[CPU]["Total"])


def _without_memory(network: nn.Module) -> dict[int, nn.Parameter]:
    """Every meta tensor of the network becomes a fake one on the CPU, by the identity of the old; ties stay."""
    made: dict[int, Any] = {}

    def fake(old: Tensor) -> Any:
        if id(old) not in made:
            new: Tensor = torch.empty(old.shape, dtype=old.dtype)
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            kept.append(old)
        return made[id(old)]

    kept: list[Tensor] = []  # an identity is one as long as the object lives
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    cast(dict[str, Any], tensors)[name] = fake(tensor)
    return made


def _nats(network: nn.Module, tokens: int) -> Tensor:
    row = torch.zeros(1, tokens, dtype=torch.long)
    body: Callable[..., Any] = body_of(network)
    hidden = body(input_ids=row, use_cache=False).last_hidden_state
    head = cast(Any, network).get_output_embeddings().weight
    return fused_cross_entropy(hidden.view(tokens, -1), head, row.view(-1))


class _NoHook:
    def remove(self) -> None:
        pass


if __name__ == "__main__":
    exit_process(main())
