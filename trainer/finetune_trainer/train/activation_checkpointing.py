"""Activation checkpointing (Chen et al. 2016, 1604.06174): a block that trains keeps its input alone, and is run again
when its gradients are due. Nothing else changes: a step's losses and gradients are the same to the bit.

What runs again is a block's own `forward`, inside of the hooks that strategies put on the block. They bring its weights
before it runs, and once more before its gradients are computed: the second pass finds them, and no hook sees it.

It costs a second forward pass through these blocks, so it is for rows that would not fit without it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from finetune_trainer.decoder_blocks import decoder_layers


def recompute_blocks(network: nn.Module, *, lowest: int) -> int:
    """From block `lowest` on; answers how many there are. Evaluation runs as before, for it keeps nothing.

    For methods and strategies that methods.needs lets through."""
    blocks = list(cast(nn.ModuleList, network.get_submodule(decoder_layers(network).prefix)))[max(0, lowest) :]
    for block in blocks:
        cast(Any, block).forward = _again_backwards(block, block.forward)
    return len(blocks)


def _again_backwards(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*given: Any, **named: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(forward, *given, use_reentrant=False, **named)  # dropout draws the same numbers again
        return forward(*given, **named)

    return run
