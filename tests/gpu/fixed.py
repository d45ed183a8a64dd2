"""Kernels in place of the reference, and whether a run that was stopped ends as one that was not, to the bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast
from unittest.mock import patch

from tests.gpu.kit import Kit
from tests.gpu.notes import Check, holds
from tests.gpu.sizes import LLAMA_1B, LLAMA_8B, Config
from tests.gpu.workshop import Desk, Ran

_CUBLAS = ":4096:8"
"""Room for cuBLAS to work in that makes its sums the same twice; it reads it once, when CUDA starts."""


def kernels(kit: Kit) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS)
    with ExitStack() as stack:
        if kit.rehearsal:
            _put_doubles(stack)
        _prove(kit)
    desk = Desk.of(kit.folder("desk"), kit.sizes, steps=2 * kit.sizes.few)
    _name(kit, desk)
    _stop_and_go_on(kit, desk)


def _put_doubles(stack: ExitStack) -> None:
    from finetune_trainer.kernels import attention, loss
    from tests.support import kernel_doubles as doubles

    stack.enter_context(patch.dict(cast(Any, attention.KERNELS), {"torch": doubles.varlen}))
    stack.enter_context(patch.dict(cast(Any, loss.KERNELS), {"liger-kernel": doubles.cross_entropy}))


def _prove(kit: Kit) -> None:
    """Every kernel that is installed, at the shapes that are timed later: right, and its time for the reference's."""
    import torch

    from finetune_trainer.kernels import attention, correctness, loss, timing
    from finetune_trainer.train.kernel_selection import machine
    from finetune_trainer.train.loss import trained_cross_entropy

    here, seconds, dtype = machine(kit.device), timing.clock(kit.device), torch.bfloat16
    tokens = 256 if kit.rehearsal else 8192
    for title, config in (("1B", LLAMA_1B), ("8B", LLAMA_8B)):
        heads = _heads(kit, config)
        positions = _positions(tokens)
        for name, kernel in attention.KERNELS.items():
            if name not in here.installed:
                kit.notes.check(Check(f"attention by {name}, {title}", "skipped", words=f"{name} is not installed"))
                continue
            fault = correctness.attention_fault(kernel, heads, dtype=dtype, device=kit.device)
            raced = _Race(kernel, heads, positions, dtype, kit.device, seconds)
            _note(kit, f"attention by {name}, {title}", fault, raced)
        for name, summed in loss.KERNELS.items():
            if name not in here.installed and not kit.rehearsal:
                kit.notes.check(Check(f"loss by {name}, {title}", "skipped", words=f"{name} is not installed"))
                continue
            shape = {
                "dim": 64 if kit.rehearsal else config["hidden_size"],
                "vocabulary": 512 if kit.rehearsal else config["vocab_size"],
                "trains_head": False, "dtype": dtype, "stored": dtype, "device": kit.device,
            }  # fmt: skip
            fault = correctness.loss_fault(summed, **shape)

            def ratio(summed: Any = summed, shape: dict[str, Any] = shape) -> float:
                return timing.loss_ratio(summed, trained_cross_entropy, tokens=tokens, seconds=seconds, **shape)

            _note(kit, f"loss by {name}, {title}", fault, ratio)


class _Race:
    def __init__(self, *given: Any) -> None:
        self.given = given

    def __call__(self) -> float:
        from finetune_trainer.kernels import timing

        kernel, heads, positions, dtype, device, seconds = self.given
        return timing.attention_ratio(kernel, heads, positions, dtype=dtype, device=device, seconds=seconds)


def _note(kit: Kit, name: str, fault: str, ratio: Callable[[], float]) -> None:
    """A run leaves out what is wrong, so that is a target missed and no error of ours."""
    if fault:
        kit.notes.check(Check(name, "missed", words=fault))
        return
    took = ratio()
    kit.notes.fact(f"ratio/{name}", took)
    kit.notes.check(Check(name, "passed", took, words="of the reference's time"))


def _heads(kit: Kit, config: Config) -> Any:
    from finetune_trainer.kernels.correctness import Heads

    if kit.rehearsal:
        return Heads(4, 2, 16)
    return Heads(config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"])


def _positions(tokens: int) -> Any:
    """(rows, length): documents of a quarter of a row."""
    import numpy as np

    row = min(4096, tokens // 2)
    return np.tile(np.arange(row) % (row // 4), (tokens // row, 1))


def _name(kit: Kit, desk: Desk) -> None:
    """A run says what it computes with."""
    ran = Desk(desk.folder, kit.sizes.few).run("named", training={"precision": "bfloat16"})
    kit.notes.fact("computed", ran.computed)
    kit.notes.check(holds("a run names its kernels", "attention " in ran.computed, ran.computed))


def _stop_and_go_on(kit: Kit, desk: Desk) -> None:
    """With sums of fixed order. What runs without them makes of it is a fact, and no promise of ours."""
    import torch

    precision = {"training": {"precision": "bfloat16"}}
    once, twice = desk.run("once", **precision), desk.run("twice", **precision)
    kit.notes.fact("same twice, as it comes", _same(once, twice))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for method in ("lora", "full"):
            whole = desk.run(f"{method}-whole", method=method, **precision)
            again = desk.run(f"{method}-again", method=method, **precision)
            resumed = _interrupted(desk, f"{method}-resumed", at=desk.steps // 2, method=method, **precision)
            if whole.computed == again.computed:
                kit.notes.check(holds(f"{method}: the same run twice, to the bit", _same(whole, again), whole.computed))
            else:  # each decides by a race which kernels are the faster ones
                words = f"{whole.computed}; then {again.computed}"
                kit.notes.check(Check(f"{method}: the same run twice, to the bit", "skipped", words=words))
            kit.notes.check(holds(f"{method}: resumed as uninterrupted, to the bit", _same(whole, resumed)))
    finally:
        torch.use_deterministic_algorithms(False)


def _same(left: Ran, right: Ran) -> bool:
    return left.losses == right.losses and left.weights() == right.weights()


def _interrupted(desk: Desk, name: str, *, at: int, **changes: Any) -> Ran:
    """Asked to stop after a step, as by SIGTERM, and started again."""
    from finetune_api.failures import FinetuneError, Reason
    from finetune_trainer.rundir import RunDir
    from finetune_trainer.train.reporter import Reporter

    plain = Reporter.step

    def step(reporter: Reporter, state: Any, done: Any) -> None:
        plain(reporter, state, done)
        if state.step == at:
            reporter.run_dir.request_stop("the kit")

    with patch.object(Reporter, "step", step):
        try:
            desk.run(name, **changes)
        except FinetuneError as error:
            if error.reason is not Reason.Interrupted:
                raise
    RunDir(desk.folder / "runs" / name).clear()
    ran = desk.run(name, **changes)
    first = ran.record.attempts[-1].first_step
    if first == 0:
        raise AssertionError("the run was not interrupted, or began again")
    return ran
