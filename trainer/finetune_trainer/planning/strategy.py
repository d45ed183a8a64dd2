"""Which strategy `auto` is, and what each needs: the memory of one process when others hold a share.

ddp    everything on every process
fsdp   1/shards of the weights, and of gradients and moments where weights are sharded; one decoder layer and what
       is outside of the layers is whole for a while. What adapters train lies whole on every process
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from finetune_api.methods import Method
from finetune_api.strategy import SHARDABLE, Strategy

from .memory import Estimate
from .model import ModelShape

Kind = Literal["ddp", "fsdp"]

ROOM = 0.9
"""Share of a process's memory that `auto` lets ddp plan for."""


def choose(settings: Strategy, method: Method, *, need: Estimate | None, memory: int | None, processes: int) -> Kind:
    """`need`: of one process that holds everything; `memory`: what one process may use. None: not known."""
    if processes == 1:
        return "ddp"
    if settings.type != "auto":
        return settings.type
    if method.type not in SHARDABLE or need is None or memory is None:
        return "ddp"
    return "ddp" if need.total <= ROOM * memory else "fsdp"


def shards(*, nodes: int, processes_per_node: int) -> int:
    """How many processes share a weight: a node's, or all where each node has one."""
    return processes_per_node if processes_per_node > 1 else nodes


def sharded(need: Estimate, shape: ModelShape, method: Method, *, shards: int) -> Estimate:
    """Of one process under fsdp, from what it needs when it holds everything."""
    layer = need.weights // max(1, shape.layers)
    outside = need.weights * 2 * shape.hidden * shape.vocabulary // max(1, shape.parameters)
    own = 1 if method.type in ("lora", "adapter") else shards
    return replace(need, weights=need.weights // shards + layer + outside, optimizer=need.optimizer // own)
