"""Tokens per second of one side over one load, in a process of its own: ours as a whole run, or a rival's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

from tests.gpu.arithmetic import mean_context, token_operations
from tests.gpu.kit import Kit
from tests.gpu.notes import Check
from tests.gpu.sides.task import Task, Timed
from tests.gpu.workshop import prepared

SIDES = {"ours": "ours", "ours-compiled": "ours", "trl": "trl_sft", "hf": "hf"}


def fast(kit: Kit, name: str, side: str) -> None:
    from finetune_trainer.planning.devices import GPUS

    load, sizes = kit.sizes.loads[name], kit.sizes
    steps = sizes.warm + sizes.timed
    folder = prepared(kit.folder(name), load, steps=steps)
    task = Task(load, folder, kit.device, warm=sizes.warm, steps=steps, compiled=side == "ours-compiled")
    double = kit.doubles and not side.startswith("ours")
    module = importlib.import_module(f"tests.gpu.sides.{'double' if double else SIDES[side]}")
    timed_by: Callable[[Task], Timed] = module.side
    with kit.compiler():
        timed = timed_by(task) if side.startswith("ours") else _at_its_best(kit, timed_by, task, side)
    adapter = 0 if load.method == "full" else timed.trainable
    context = mean_context([load.document])
    known = next((device for device in GPUS if device.name.lower() in _name(kit).lower()), None)
    for key, value in {
        "title": load.title,
        "side": side,
        "double": double,
        "tokens": load.tokens,
        "steps": sizes.timed,
        "losses": timed.losses,
        "reserved": timed.reserved,
        "allocated": timed.allocated,
        "trainable": timed.trainable,
        "setting": timed.setting,
        "versions": timed.versions,
        "computed": timed.computed,
        "operations": token_operations(load.config, trains=load.trains, context=context, adapter_weights=adapter),
        "peak_operations": known.bf16 if known else None,
        "step_seconds": timed.each,
        "seconds": timed.seconds,
    }.items():
        kit.notes.fact(key, value)
    speed = load.tokens * sizes.timed / timed.seconds
    print(f"{load.title}, {side}: {speed:.0f} tokens/s, {timed.reserved / 2**30:.1f} GiB reserved")


def _at_its_best(kit: Kit, timed_by: Callable[[Task], Timed], task: Task, side: str) -> Timed:
    """A rival with its fastest setting that works here: it gets checkpointing where memory runs out without, and goes
    without Liger's kernels where they fail."""
    import torch

    while True:
        try:
            return timed_by(task)
        except Exception as error:
            short = isinstance(error, torch.OutOfMemoryError)
            if (short and task.checkpointing) or (not short and not task.uses_liger):
                raise
            words = f"{type(error).__name__}: {error}"[:200]
            kit.notes.check(Check(f"{task.load.title}: {side}, {task.setting}", "missed", words=words))
        task = replace(task, checkpointing=True) if short else replace(task, liger=False)


def _name(kit: Kit) -> str:
    import torch

    return torch.cuda.get_device_name(kit.device) if kit.on_gpu else "CPU"
