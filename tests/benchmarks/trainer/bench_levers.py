"""What each lever of the trainer is worth: our own steps with it and without it, side by side on this machine.

    python tests/benchmarks/trainer/bench_levers.py [--lever compile] [--rounds 3] [--steps 4] [--model FOLDER]

Shapes of SmolLM2-135M with 4 x 256 random tokens a step, fp32, one thread. Each side is a process of its own, and they
take turns. What counts is CPU seconds of the process: of steps the cheapest, of all rounds the cheapest. Losses of both
sides must agree to 1e-5, or the row is void. Exits 1 where a row is void or misses its target.

    compile    LoRA on all layers, its blocks compiled or not; a first process has filled the cache
    frozen     the last four layers, whose frozen layers run once or in every step; a later epoch against the first
    backward   LoRA on the last four layers, with gradients that end there or reach the embeddings
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build import LENGTH, SMOLLM2, peak_megabytes, random_model, trainer_over, with_kept_states

ROWS = 4
LOSS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Lever:
    before: str
    after: str
    target: float
    """Of CPU seconds, after over before."""
    epochs: bool = False
    """Whether a later epoch is held against the first one of the same side."""


LEVERS = {
    "compile": Lever("lora", "lora-compiled", 0.97),
    "frozen": Lever("last4", "last4-kept", 0.55, epochs=True),
    "backward": Lever("top4-to-the-embeddings", "top4", 0.75),
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lever", choices=LEVERS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", type=Path, help="folder of a model; default: random weights in the shape of SmolLM2")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(_measure(options.side, options.model, options.steps, options.scratch)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder) / "model")
        met = [
            _row(name, model, Path(folder), rounds=options.rounds, steps=options.steps)
            for name in options.lever or LEVERS
        ]
    return 0 if all(met) else 1


def _row(name: str, model: Path, scratch: Path, *, rounds: int, steps: int) -> bool:
    lever = LEVERS[name]
    sides = (lever.before, lever.after)
    if name == "compile":
        _in_a_process(lever.after, model, 2, scratch)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            found[side].append(run := _in_a_process(side, model, steps, scratch / str(turn)))
            shown = " ".join(f"{cpu:.2f}" for cpu in run["cpu"])
            print(f"{side}: before {run['fill']:.2f}, steps {shown} CPU s, peak {run['peak']:.0f} MB", flush=True)
    before, after = (Best.of(found[side]) for side in sides)
    apart = max(abs(a - b) / a for a, b in zip(before.losses, after.losses, strict=True))
    print(f"{name}: {after.cpu:.2f} against {before.cpu:.2f} CPU s a step, {after.cpu / before.cpu:.3f}")
    print(f"{name}: first step {after.first:.2f} against {before.first:.2f} CPU s, losses apart by {apart:.1e}")
    print(f"{name}: peak {after.peak:.0f} against {before.peak:.0f} MB, {after.peak / before.peak:.3f}")
    # A step of the first epoch has its share of what was done before the first step.
    base = after.cpu + after.fill if lever.epochs else before.cpu
    held_against = "its own first epoch" if lever.epochs else "without"
    print(f"{name}: {after.cpu / base:.3f} of {held_against} ({base:.2f} CPU s a step; target {lever.target})")
    return after.cpu / base <= lever.target and apart <= LOSS_TOLERANCE


@dataclass(frozen=True)
class Best:
    """Of all rounds of one side."""

    cpu: float
    first: float
    fill: float
    """Before the first step, for each step of an epoch."""
    peak: float
    losses: list[float]

    @classmethod
    def of(cls, runs: list[dict[str, Any]]) -> Best:
        return cls(
            cpu=min(min(run["cpu"][1:]) for run in runs),
            first=min(run["cpu"][0] for run in runs),
            fill=min(run["fill"] / run["epoch_steps"] for run in runs),
            peak=min(run["peak"] for run in runs),
            losses=runs[0]["losses"],
        )


def _in_a_process(side: str, model: Path, steps: int, scratch: Path) -> dict[str, Any]:
    scratch.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--side", side, "--model", str(model), "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "--scratch", str(scratch)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _measure(side: str, model: Path, steps: int, scratch: Path) -> dict[str, Any]:
    import torch

    from finetune_api.methods import Lora, Method, Partial
    from finetune_trainer.train.state import State

    torch.set_num_threads(1)
    epoch_steps = max(1, steps // 2)
    shape = (epoch_steps * ROWS, LENGTH)
    rows = torch.randint(0, SMOLLM2["vocab_size"], shape, generator=torch.Generator().manual_seed(3)).numpy()
    method = {
        "lora": Method(type="lora", lora=Lora(rank=16)),
        "last4": Method(type="partial", partial=Partial(layers=4)),
        "top4": Method(type="lora", lora=Lora(rank=16, layers=4)),
    }[side.partition("-")[0]]
    trainer, attached = trainer_over(model, method, rows, steps=steps, batch=ROWS, folder=scratch)
    network, started = trainer.model.network, time.process_time()
    if side.endswith("-compiled"):
        from finetune_trainer.train.compilation import compile_blocks

        cache = scratch.parent if scratch.name.isdigit() else scratch
        compile_blocks(network, lowest=attached.lowest_layer, cache=cache, device=trainer.model.device)
    if side.endswith("-kept"):
        trainer = with_kept_states(trainer, attached, scratch)
    if side.endswith("-to-the-embeddings"):
        network.enable_input_require_grads()
    fill = time.process_time() - started
    state, cpu = State(), []
    for _ in range(steps):
        started = time.process_time()
        state, _ = trainer._step(state)
        cpu.append(time.process_time() - started)
    losses = [point.loss for point in state.curve]
    return {"losses": losses, "cpu": cpu, "fill": fill, "epoch_steps": epoch_steps, "peak": peak_megabytes()}


if __name__ == "__main__":
    sys.exit(main())
