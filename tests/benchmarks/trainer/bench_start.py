"""From a process's start to its first step's end, the weights not in memory yet: read when they are needed, or brought
near while the process imports.

    python tests/benchmarks/trainer/bench_start.py [--model FOLDER] [--rounds 5]

LoRA on 4 x 32 random tokens, one thread. Each run is a process of its own, sides take turns, and the kernel is asked to
drop the files before each. What counts is the median of seconds: this wants a machine that does nothing else. A
node's launcher reads ahead (`store/near.py`) where the model is on the machine or a claim.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="folder of a model; default: random weights in the shape of SmolLM2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(_measure(options.side, options.model, options.since)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _random_model(Path(folder) / "model")
        found: dict[str, list[dict[str, float]]] = {"as-needed": [], "ahead": []}
        for turn in range(options.rounds):
            for side in list(found)[:: 1 if turn % 2 == 0 else -1]:
                _drop(model)
                found[side].append(run := _in_a_process(side, model))
                print(f"{side}: {run['wall']:.2f} s, {run['cpu']:.2f} CPU s", flush=True)
    plain, ahead = (statistics.median(run["wall"] for run in runs) for runs in found.values())
    print(f"ahead / as-needed: {ahead:.2f} against {plain:.2f} s, {ahead / plain:.3f}")
    return 0


def _drop(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _in_a_process(side: str, model: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--model", str(model), "--since", str(time.time())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _measure(side: str, model: Path, since: float) -> dict[str, float]:
    if side == "ahead":
        from finetune_trainer.store.prefetch import prefetch_weights

        prefetch_weights(model.resolve().as_uri())
    import torch

    from finetune_trainer.train.without_triton import disable_triton

    disable_triton(torch.device("cpu"))
    sys.path.insert(0, str(Path(__file__).parent))
    from build import trainer_over

    from finetune_api.methods import Lora, Method
    from finetune_trainer.train.state import State

    rows = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(3)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        method = Method(type="lora", lora=Lora(rank=16))
        trainer, _ = trainer_over(model, method, rows, steps=1, batch=4, folder=Path(folder))
        trainer._step(State())
    return {"wall": time.time() - since, "cpu": time.process_time()}


def _random_model(folder: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parent))
    from build import random_model

    return random_model(folder)


if __name__ == "__main__":
    sys.exit(main())
