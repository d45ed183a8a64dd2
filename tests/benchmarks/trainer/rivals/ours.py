"""Ours: a whole run from a manifest, in one process, as torchrun starts it. Nothing is left out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RATE, Meter, Task, main


def manifest(task: Task, scratch: Path) -> dict[str, Any]:
    method: dict[str, Any] = {"type": task.method}
    if task.method == "partial":
        method["partial"] = {"layers": task.layers}
    elif task.layers is not None:
        method["lora"] = {"layers": task.layers}
    training: dict[str, Any] = {
        "epochs": task.steps if task.packing else task.epochs,
        "batchSize": task.rows,
        "learningRate": RATE,
        "schedule": "constant",
        "warmupRatio": 0.0,
        "evaluateEvery": 1000,
    }
    if task.setting == "compiled":
        training["compile"] = True
    if task.setting == "uncached":
        training["frozenLayerCache"] = False
    return {
        "model": {"uri": f"file://{task.model}"},
        "data": {
            "train": [{"uri": f"file://{task.documents}/train.jsonl"}],
            "validation": {"uri": f"file://{task.documents}/validation.jsonl"},
            "sequenceLength": task.length,
        },
        "output": {"uri": f"file://{scratch}/output"},
        "method": method,
        "training": training,
    }


def side(task: Task) -> dict[str, Any]:
    from finetune_api.plan import RunPlan
    from finetune_trainer.methods.lora import Lora
    from finetune_trainer.rundir import RunDir
    from finetune_trainer.train import frozen_cache
    from finetune_trainer.train.reporter import Reporter
    from finetune_trainer.train.run import run

    scratch = Path(task.scratch)
    # What is compiled outlasts a run; frozen layers' states must not, or later runs would pay nothing for them.
    os.environ["FINETUNE_CACHE"] = f"{task.documents}/compiled" if task.setting == "compiled" else f"{scratch}/cache"
    job = {"namespace": "bench", "name": "rivals", "uid": "0"}
    plan = RunPlan.model_validate_json(json.dumps({"job": job, "spec": manifest(task, scratch)}))
    meter = Meter()

    def attach(self: Lora, network: Any, **rest: Any) -> Any:
        made = plain_attach(self, network, **rest)
        meter.begin(network.named_parameters())
        return made

    def kept(*args: Any, **rest: Any) -> Any:
        started = time.process_time()
        made = plain_kept(*args, **rest)
        meter.before = time.process_time() - started
        return made

    def phase(self: Reporter, name: str, message: str = "") -> None:
        plain_phase(self, name, message)
        if name == "training":
            meter.trainable = self.resolved.trainable_parameters or 0
            meter.restart()

    def step(self: Reporter, state: Any, done: Any) -> None:
        meter.step()
        meter.losses.append(done.loss)
        plain_step(self, state, done)

    plain_attach: Callable[..., Any] = Lora.attach
    plain_phase: Callable[..., None] = Reporter.phase
    plain_step: Callable[..., None] = Reporter.step
    plain_kept, frozen_cache.kept = frozen_cache.kept, kept
    Lora.attach, Reporter.phase, Reporter.step = attach, phase, step  # type: ignore[method-assign]
    run(plan, RunDir(scratch / "run"), os.environ)
    return meter.report("torch", "transformers", "peft")


if __name__ == "__main__":
    main(side)
