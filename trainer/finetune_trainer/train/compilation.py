"""Decoder blocks through torch.compile, one at a time: blocks of one class share their code, so what is compiled is one
block and not the network, and the loop, the loss and every hook around a block stay as they are.

A step that trains runs compiled blocks. Evaluation, and the frozen layers below, run as they were written: they are
cheap, and every other way to call a block would be compiled again. The first shape is compiled as it is, the second one
so that it holds for all. What gathers a block's shards and frees them (FSDP2) hangs on the block, around what is
compiled, which sees whole weights. The compiler's results are in the node's cache, where the next process finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.torch_api import need

MOST_VARIANTS = 32
"""Of one block: masked or not, one row or several; and the first block's input needs no gradient. torch gives up at
8, and then runs what it has not compiled."""


def compile_blocks(network: nn.Module, *, lowest: int, cache: Path, device: torch.device) -> int:
    """From block `lowest` on; answers how many there are. Nothing is compiled before the first step.

    For methods and strategies that methods.needs lets through."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.config

    need(
        "torch._dynamo.config:recompile_limit",
        "torch._functorch.config:ban_recompute_materialized_backward",
        what_for="training.compile",
    )
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    if device.type == "cpu":
        torch._inductor.config.compile_threads = 1  # each of its processes would import torch for a handful of kernels
        # Inputs of products that take one pass to make (a gated activation, a norm's last factor) are made again for
        # the backward, not kept: 300 MB of 2.5 GB in the shape of SmolLM2, and no time.
        torch._functorch.config.ban_recompute_materialized_backward = False
    blocks = list(cast(nn.ModuleList, network.get_submodule(decoder_layers(network).prefix)))[max(0, lowest) :]
    for block in blocks:
        cast(Any, block).forward = _trained_compiled(block, block.forward)
    return len(blocks)


def _trained_compiled(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    # Dropout takes torch's own random numbers, so that a compiled run has those of one that is not.
    compiled = torch.compile(forward, options={"fallback_random": True})

    @wraps(forward)
    def run(*given: Any, **named: Any) -> Any:
        chosen = compiled if block.training and torch.is_grad_enabled() else forward
        return chosen(*given, **named)

    return run
