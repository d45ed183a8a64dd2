"""Which strategy `auto` is, and how many processes share a weight. What a share is: see `spread`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method
from finetune_api.regularization import NO_TERMS, Regularization
from finetune_api.strategy import SHARDABLE, Strategy

from .memory import Estimate
from .spread import Spread

Kind = Literal["ddp", "fsdp", "deepspeed"]

ROOM = 0.9
"""Share of a process's memory that `auto` lets ddp plan for."""


def choose(
    settings: Strategy,
    method: Method,
    *,
    need: Estimate | None,
    memory: int | None,
    processes: int,
    terms: Regularization = NO_TERMS,
) -> Kind:
    """`need`: of one process that holds everything; `memory`: what one process may use. None: not known."""
    if settings.type == "deepspeed":  # offloading helps one process too
        return "deepspeed"
    if processes == 1:
        return "ddp"
    if settings.type != "auto":
        return settings.type
    if method.type not in SHARDABLE["fsdp"] or not terms.works_under("fsdp") or need is None or memory is None:
        return "ddp"
    return "ddp" if need.total <= ROOM * memory else "fsdp"


def check_installed(settings: Strategy) -> None:
    """InvalidSpec where the strategy needs a package that is not here."""
    if settings.type == "deepspeed" and find_spec("deepspeed") is None:
        raise FinetuneError(
            Reason.InvalidSpec,
            "strategy.type deepspeed needs the package deepspeed, which the trainer's image does not have",
            "Use an image with finetune-operator[trainer,deepspeed], or set strategy.type: fsdp.",
        )


def of_gang(
    settings: Strategy, *, nodes: int, processes_per_node: int, fits: Callable[[Spread], bool] = lambda _: True
) -> Spread:
    """What a gang's strategy (ddp where it is still auto) does with the states. `fits`: whether a process holds its
    shard; it decides how many nodes share a weight under fsdp, see `shards`."""
    ranks = nodes * processes_per_node
    if settings.type == "fsdp":
        return shards(nodes=nodes, processes_per_node=processes_per_node, fits=fits)
    if settings.type == "deepspeed":
        return Spread(
            strategy="deepspeed",
            ranks=ranks,
            zero_stage=settings.stage,
            offload_optimizer=settings.offload in ("optimizer", "all"),
            offload_parameters=settings.offload == "all",
        )
    return Spread(ranks=ranks)


def shards(*, nodes: int, processes_per_node: int, fits: Callable[[Spread], bool]) -> Spread:
    """HSDP: the processes of a node share a weight if they can hold the model; otherwise those of two nodes, or of the
    next number that divides all nodes, and in the end all. Nodes of one process each share it among all of them."""
    ranks = nodes * processes_per_node
    together = [count for count in range(1, nodes + 1) if nodes % count == 0] if processes_per_node > 1 else [nodes]
    for count in together:
        sharing = count * processes_per_node
        spread = Spread(strategy="fsdp", ranks=ranks, shards=sharing, crosses=1 < count < nodes)
        if fits(spread):
            break
    return spread
