"""What one rank of a gang does in test_strategies: it runs each case, and leaves what it learned, held and saved."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from finetune_api.failures import FinetuneError
from finetune_api.methods import Adapter, Lora, Method, Partial
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.kernels import attention, candidates, loss, timing
from finetune_trainer.kernels.selected import Kernels
from finetune_trainer.methods import merged
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.ddp import Ddp
from finetune_trainer.parallel.registry import spread
from finetune_trainer.store.local import LocalFolder
from finetune_trainer.train.activation_checkpointing import recompute_blocks
from finetune_trainer.train.kernel_selection import Choice
from finetune_trainer.train.loss import trained_cross_entropy
from finetune_trainer.train.model import load_network
from tests.support import kernel_doubles as doubles
from tests.support.training import CPU, Knobs, Place, Run, make_run

ROOT = Path(__file__).resolve().parents[2]


METHODS = {
    "full": Method(type="full"),
    "partial": Method(type="partial", partial=Partial(layers=1)),
    "lora": Method(type="lora", lora=Lora(rank=4)),
    "adapter": Method(type="adapter", adapter=Adapter(bottleneck=4)),
}


EIGHT_BITS = {"full8": Method(type="full"), "lora8": Method(type="lora", lora=Lora(rank=64))}
"""With moments in 8 bits, of a model that is wide enough for them."""


KNOBS = Knobs(steps=8, checkpoint_steps=1, rate=1e-3, max_norm=0.1)
"""Every step of every method is clipped."""


@dataclass(frozen=True)
class Case:
    """A run of one method under one strategy, in a folder; with `killed_at` it dies when that step begins."""

    folder: str
    method: str
    strategy: Literal["ddp", "fsdp", "deepspeed"]
    killed_at: int | None = None
    max_tokens: int = 48
    stage: int | None = None
    offload: Literal["optimizer", "all"] | None = None
    recomputed: bool = False
    poisoned_at: int | None = None
    """The step in which the last rank's gradients are infinite, though no loss is."""
    one_node: bool = False
    """All ranks share a weight, whatever nodes they are on."""
    shards: int | None = None
    """How many ranks share a weight, each on a node of its own."""
    shot_at: int | None = None
    """The step whose manifest is what the first rank dies of, when all parts are stored."""
    kernels: bool = False
    """Attention by boundaries and a loss of others, in plain torch, proved by all ranks."""

    @property
    def settings(self) -> Settings:
        return Settings(type=self.strategy, zero_stage=self.stage, offload=self.offload)


class _Killed(Exception):
    pass


def run_case(root: Path, case: Case, strategy: Strategy) -> dict[str, Any]:
    thrifty = case.method in EIGHT_BITS
    method = {**METHODS, **EIGHT_BITS}[case.method]
    frozen = not method.trains_the_model
    net, _ = load_network(
        root / ("wide" if thrifty else "base"), dtype=torch.float32, strategy=strategy, device=CPU, frozen=frozen
    )
    held = sum(_held(parameter) for parameter in net.parameters())
    whole = sum(map(_numel, net.parameters()))
    knobs = replace(KNOBS, method=method, max_tokens=case.max_tokens, optimizer="adamw8bit" if thrifty else "adamw")
    run = make_run(root / case.folder, knobs, strategy=strategy, net=net)
    if case.recomputed:
        recompute_blocks(net, lowest=run.attached.lowest_layer)
    passes = _passes(net)
    if case.kernels:
        run = _on_kernels(run, strategy)
    if case.shot_at:
        _shoot(run, f"{case.shot_at:09d}.json")
    seed = run.trainer._seed

    def dying(step: int, index: int) -> None:
        if step == case.killed_at:
            raise _Killed
        seed(step, index)

    object.__setattr__(run.trainer, "_seed", dying)
    if strategy.place.rank == strategy.place.world_size - 1:
        _poison(run, case.poisoned_at)
    try:
        state = run.finish()
    except FinetuneError as error:
        return {"reason": str(error.reason), "message": error.message}
    except _Killed:
        run.trainer.checkpointer.wait()
        return {"held": held, "whole": whole}
    tensors, parts = run.tensors(), run.trainer.weights.parts
    _export(run, strategy, root / case.folder / "export", base=root / "base" if case.method == "lora" else None)
    losses = [point.loss for point in state.curve]
    norms = [point.gradient_norm for point in state.curve]
    validation = state.validation[-1].scores.loss
    saved, resumed = sum(tensor.nbytes for tensor in tensors.values()), state.attempts[-1].first_step
    sizes = {"held": held, "whole": whole, "saved": saved, "parts": parts, "resumed": resumed}
    learned = {"losses": losses, "norms": norms, "validation": validation, "tensors": tensors}
    return {**sizes, **learned, "passes": passes}


def _passes(net: nn.Module) -> list[int]:
    """Of each block through its feed-forward part, in steps that train; counted from now on."""
    counts = [0] * len(net.base_model.layers)  # type: ignore[union-attr, arg-type]

    def counted(module: nn.Module, number: int) -> None:
        counts[number] += module.training and torch.is_grad_enabled()

    for number, block in enumerate(net.base_model.layers):  # type: ignore[union-attr, arg-type]
        block.mlp.register_forward_pre_hook(lambda module, _, number=number: counted(module, number))
    return counts


def _on_kernels(run: Run, strategy: Strategy) -> Run:
    choice = Choice(
        network=run.net,
        job=candidates.Job("lora", "float32", packing=True, compiled=False),
        machine=candidates.Machine("cpu", (0, 0), {}),
        device=CPU,
        autocast=None,
        strategy=strategy,
        say=print,
        seconds=timing.clock(CPU),
    )
    with (
        patch.dict(cast("dict[str, Any]", attention.KERNELS), {"torch": doubles.varlen}),
        patch.dict(cast("dict[str, Any]", loss.KERNELS), {"liger-kernel": doubles.cross_entropy}),
    ):
        assert choice._attention_fault("torch", None) == ""
        assert choice._loss_fault("liger-kernel", None) == ""
    kernels = Kernels(summed=loss.with_gradients(doubles.cross_entropy, trained_cross_entropy))
    assert attention.takes_starts(run.net)
    return replace(run, trainer=replace(run.trainer, model=replace(run.trainer.model, kernels=kernels)))


def _shoot(run: Run, manifest: str) -> None:
    folder = cast(LocalFolder, run.trainer.checkpointer.store.folder)
    put = LocalFolder.put

    def deadly(path: str, data: bytes | Path) -> None:
        if path.endswith(manifest):
            os.kill(os.getpid(), signal.SIGKILL)
        put(folder, path, data)

    object.__setattr__(folder, "put", deadly)


def _poison(run: Run, poisoned_at: int | None) -> None:
    weights, began = run.trainer.weights, run.trainer._seed
    backward, step = weights.backward, [-1]

    def watched(now: int, index: int) -> None:
        step[0] = now
        began(now, index)

    def poisoned(nats: torch.Tensor, *, last: bool) -> None:
        backward(nats * float("inf") if step[0] == poisoned_at else nats, last=last)

    object.__setattr__(run.trainer, "_seed", watched)
    weights.backward = poisoned  # type: ignore[method-assign]


def _held(parameter: nn.Parameter) -> int:
    if hasattr(parameter, "ds_tensor"):
        return int(parameter.ds_tensor.numel())
    return parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _export(run: Run, strategy: Strategy, folder: Path, *, base: Path | None) -> None:
    """With a merged model, as `output.merged` asks for it, where `base` is given."""
    if base:
        merged.check(merged.low_rank_changes(run.net), base)
    strategy.collect(run.net, everything=run.attached.kind == "model")
    if strategy.place.first:
        folder.mkdir()
        run.attached.export(folder)
        if base:
            merged.write(merged.low_rank_changes(run.net), base, folder / merged.FOLDER, alive=lambda: None)


def run_cases(rank: int, world_size: int, port: int, local_size: int, root: str, cases: list[Case], path: str) -> None:
    torch.set_num_threads(1)
    sys.path.append(path)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ddp.join(Place(rank, rank % local_size, world_size, local_size), CPU)
    for case in cases:
        together = replace(ranks.place, local_rank=rank, local_world_size=world_size)
        joined = replace(ranks, place=together) if case.one_node else ranks
        if case.shards:
            joined = replace(ranks, place=replace(ranks.place, local_rank=0, local_world_size=1))
        strategy = spread(joined, case.strategy, device=CPU, settings=case.settings, shards=case.shards)
        told = run_case(Path(root), case, strategy)
        torch.save(told, f"{root}/{case.folder}.{rank}.pt")
        ranks.barrier()
    ranks.close()
