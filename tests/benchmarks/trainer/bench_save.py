"""What a checkpoint of an adapter costs a step, and how many bytes it is.

    python tests/benchmarks/trainer/bench_save.py [--saves 7]

LoRA rank 16 on all linear layers in the shape of SmolLM2-135M, AdamW, into a folder. Blocked is the time from the
request until the next step may begin, with the save before it done: of all saves the least, on the clock and in CPU
seconds of the thread. Bytes are those of the store against adapter and moments. Exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from build import LENGTH, SMOLLM2, random_model, trainer_over

BLOCKED_TARGET, BYTES_TARGET = 0.05, 1.02


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--saves", type=int, default=7)
    options = parser.parse_args()

    import torch

    from finetune_api.methods import Lora, Method
    from finetune_api.plan import JobIdentity
    from finetune_trainer.store.checkpoints import CheckpointStore
    from finetune_trainer.store.opening import open_folder
    from finetune_trainer.train.checkpointer import Checkpointer
    from finetune_trainer.train.state import State

    torch.set_num_threads(1)
    rows = torch.zeros(4, LENGTH, dtype=torch.long).numpy()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = random_model(folder / "model", vocab_size=SMOLLM2["vocab_size"] // 16)  # the head has no adapter
        method = Method(type="lora", lora=Lora(rank=16))
        trainer, _ = trainer_over(model, method, rows, steps=1, batch=4, folder=folder)
        output = open_folder(f"file://{folder}/output", prefix="")
        store = CheckpointStore(output, JobIdentity(namespace="bench", name="save", uid="0"))
        checkpointer = Checkpointer(strategy=trainer.strategy, store=store, keep=1, every_steps=1, every_seconds=None)
        clock, cpu = [], []
        for step in range(1, options.saves + 1):
            trainer.weights.step(1e-3, divisor=1.0, max_norm=1.0)
            checkpointer.wait()
            started, busy = time.perf_counter(), time.thread_time()
            checkpointer.save(State(step=step), trainer.weights)
            clock.append(time.perf_counter() - started)
            cpu.append(time.thread_time() - busy)
        checkpointer.wait()
        own = sum(tensor.nbytes for tensor in trainer.weights.tensors().values())
        stored = sum(file.stat().st_size for file in (folder / "output").rglob("*") if file.is_file())
    print(
        f"blocked {min(clock) * 1000:.0f} ms, {min(cpu) * 1000:.0f} ms of CPU (target {BLOCKED_TARGET * 1000:.0f} ms)"
    )
    print(f"{stored / 1e6:.2f} MB stored, {own / 1e6:.2f} MB of tensors: {stored / own:.4f} ({BYTES_TARGET})")
    return 0 if min(clock) <= BLOCKED_TARGET and stored / own <= BYTES_TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
