"""Which strategy `auto` is, and how many processes share a weight. What a share is: see `spread`."""

from __future__ import annotations

from typing import Literal

from finetune_api.methods import Method
from finetune_api.strategy import SHARDABLE, Strategy

from .memory import Estimate

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
