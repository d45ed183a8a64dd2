"""Gangs on one card: each strategy over NCCL with a single rank, and two ranks of one card over gloo."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.gpu.arithmetic import apart
from tests.gpu.judge import ALL_STEPS
from tests.gpu.kit import Kit, free_port, interpreter, read_json
from tests.gpu.notes import Check, at_most, holds
from tests.gpu.workshop import Desk

_DESK = "FINETUNE_GPU_KIT_DESK"
_TWO_RANKS_SECONDS = 60


def strategies(kit: Kit) -> None:
    if "RANK" in os.environ:
        return _rank(kit)
    desk = Desk.of(kit.folder("desk"), kit.sizes, steps=kit.sizes.few)
    alone = {method: desk.run(f"alone-{method}", method=method).losses for method in ("full", "lora")}
    for kind in ("ddp", "fsdp"):
        for method, losses in alone.items():
            _tried(
                kit, desk, f"{kind}, {method}, one rank over {'NCCL' if kit.on_gpu else 'gloo'}", kind, method, losses
            )
    _two_ranks(kit, desk, alone["lora"])
    return None


def zero(kit: Kit, stage: str) -> None:
    """One process alone, for DeepSpeed keeps what it knows of a gang for the life of a process."""
    desk = Desk.of(kit.folder("desk"), kit.sizes, steps=kit.sizes.few)
    alone = desk.run("alone", method="full").losses
    ran = desk.run("zero", method="full", strategy={"type": "deepspeed", "zeroStage": int(stage)})
    kit.notes.check(holds(f"ZeRO {stage} is what ran", ran.record.plan.strategy == "deepspeed"))
    kit.notes.check(at_most(f"ZeRO {stage}, full, one rank, beside alone", apart(ran.losses, alone), ALL_STEPS))


def _tried(kit: Kit, desk: Desk, name: str, kind: str, method: str, losses: list[float]) -> None:
    try:
        with ExitStack() as stack:
            _join_a_gang(stack, kind)
            ran = desk.run(f"{kind}-{method}", method=method, strategy={"type": kind})
    except Exception as error:
        _leave_the_gang()
        kit.notes.check(Check(name, "failed", words=f"{type(error).__name__}: {error}"[:300]))
        return
    kit.notes.check(holds(f"{name}: is what ran", ran.record.plan.strategy == kind, ran.record.plan.strategy))
    kit.notes.check(at_most(name, apart(ran.losses, losses), ALL_STEPS))


def _join_a_gang(stack: ExitStack, kind: str) -> None:
    """Of one, which the trainer itself would not bother with."""
    from finetune_trainer.parallel.base import Place
    from finetune_trainer.parallel.ddp import Ddp
    from finetune_trainer.parallel.registry import STRATEGIES

    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    stack.enter_context(patch.dict(os.environ, address))
    stack.enter_context(patch("finetune_trainer.train.run.join", lambda _, device: Ddp.join(Place(0, 0, 1, 1), device)))
    stack.enter_context(patch.dict(STRATEGIES, {"ddp": STRATEGIES[kind]}))  # which is what it chooses for one process


def _leave_the_gang() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _two_ranks(kit: Kit, desk: Desk, losses: list[float]) -> None:
    """NCCL takes no two ranks of one card, gloo does: sums of gradients that lie on a card, and a share of the rows."""
    gang = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    notes = [kit.folder(f"rank{rank}") / "notes.json" for rank in range(2)]
    ranks = []
    for rank, file in enumerate(notes):
        command = [*interpreter(), "--out", str(kit.out), "--part", kit.part.name, "--notes", str(file)]
        command += ["--rehearsal"] if kit.rehearsal else []
        environ = {**os.environ, **gang, "RANK": str(rank), "LOCAL_RANK": str(rank), _DESK: str(desk.folder)}
        ranks.append(subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL))
    codes: list[int | None] = []
    try:
        codes = [rank.wait(_TWO_RANKS_SECONDS * (8 if kit.rehearsal else 1)) for rank in ranks]
    except subprocess.TimeoutExpired:
        codes = [None]
    finally:
        for rank in ranks:
            rank.kill()
    found = read_json(notes[0]) or {"checks": [], "facts": {}}
    name = "ddp, lora, two ranks of one device over gloo"
    if any(code != 0 for code in codes) or "losses" not in found["facts"]:
        why = "; ".join(check["words"] for file in notes for check in (read_json(file) or {"checks": []})["checks"])
        why = why or f"they ended with {codes}" if None not in codes else "they did not end in time"
        kit.notes.check(Check(name, "failed", words=why[:300]))
        return
    kit.notes.check(holds(f"{name}: is what ran", found["facts"]["world_size"] == 2))
    kit.notes.check(at_most(name, apart(found["facts"]["losses"], losses), ALL_STEPS))


def _rank(kit: Kit) -> None:
    import torch
    import torch.distributed as dist

    plain = dist.init_process_group
    device = kit.device

    def over_gloo(backend: str, **options: Any) -> None:
        plain("gloo", **options)

    with (
        patch.object(dist, "init_process_group", over_gloo),
        patch("finetune_trainer.train.run.choose_device", lambda _: torch.device(device)),
    ):
        ran = Desk(Path(os.environ[_DESK]), kit.sizes.few).run("two-ranks", strategy={"type": "ddp"})
    kit.notes.fact("world_size", ran.record.plan.world_size)
    kit.notes.fact("losses", ran.losses)
