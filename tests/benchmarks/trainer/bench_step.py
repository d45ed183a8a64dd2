"""One LoRA step of ours against one of Hugging Face's Trainer with PEFT, side by side on this machine.

    python tests/benchmarks/trainer/bench_step.py [--rounds 3] [--steps 5] [--model FOLDER]

The shape is that of SmolLM2-135M with 4 x 256 random tokens, LoRA rank 16 on all linear layers, fp32, one thread, AdamW
at a constant rate. Both sides have the same weights, the same adapter, the same tokens, and must have the same losses.
What counts is CPU seconds of the process, which other load on the machine disturbs least: for each process the cheapest
step after the first, and of all rounds the best and the median. Sides take turns, each in a process of its own, since
peak memory is that of a process. Exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from build import LENGTH, RATE, SMOLLM2, peak_megabytes, random_model, trainer_over

ROWS, RANK = 4, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CPU_TARGET, MEMORY_TARGET, LOSS_TOLERANCE = 0.97, 0.9, 1e-3


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", type=Path, help="folder of a model; default: random weights in the shape of SmolLM2")
    parser.add_argument("--side", choices=["ours", "trainer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(_measure(options.side, options.model, options.steps)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder))
        return _compare(model, rounds=options.rounds, steps=options.steps)


def _compare(model: Path, *, rounds: int, steps: int) -> int:
    packages = ("torch", "transformers", "peft", "accelerate")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    results: dict[str, list[dict[str, Any]]] = {"ours": [], "trainer": []}
    for turn in range(rounds):
        for side in ("ours", "trainer") if turn % 2 == 0 else ("trainer", "ours"):
            results[side].append(found := _in_a_process(side, model, steps))
            print(
                f"round {turn + 1} {side:8} {min(found['cpu'][1:]):6.2f} CPU s a step (first {found['cpu'][0]:.2f}), "
                f"peak {found['peak']:5.0f} MB, losses {found['losses'][0]:.5f} … {found['losses'][-1]:.5f}"
            )
    ours, theirs = results["ours"], results["trainer"]
    cpu = {side: [min(r["cpu"][1:]) for r in found] for side, found in results.items()}
    best = min(cpu["ours"]) / min(cpu["trainer"])
    median = statistics.median(cpu["ours"]) / statistics.median(cpu["trainer"])
    memory = max(r["peak"] for r in ours) / max(r["peak"] for r in theirs)
    apart = max(abs(a - b) for a, b in zip(ours[0]["losses"], theirs[0]["losses"], strict=True))
    whole = sum(sum(r["cpu"]) for r in ours) / sum(sum(r["cpu"]) for r in theirs)
    print(f"CPU seconds a step, ours/Trainer: best {best:.3f}, median {median:.3f} (target {CPU_TARGET})")
    print(f"CPU seconds of all steps of all rounds, the first ones too, ours/Trainer: {whole:.3f}")
    print(f"peak memory, ours/Trainer: {memory:.3f} (target {MEMORY_TARGET})")
    print(f"largest difference of a loss: {apart:.1e} (target {LOSS_TOLERANCE})")
    return 0 if best <= CPU_TARGET and memory <= MEMORY_TARGET and apart <= LOSS_TOLERANCE else 1


def _in_a_process(side: str, model: Path, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--model", str(model), "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _measure(side: str, model: Path, steps: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    losses, cpu = (_ours if side == "ours" else _trainer)(model, steps)
    return {"losses": losses, "cpu": cpu, "peak": peak_megabytes()}


def _tokens(steps: int) -> Any:
    """(steps, rows, length), the same for both sides."""
    import torch

    return torch.randint(0, SMOLLM2["vocab_size"], (steps, ROWS, LENGTH), generator=torch.Generator().manual_seed(3))


def _ours(model: Path, steps: int) -> tuple[list[float], list[float]]:
    """The trainer's own loop over the same tokens."""
    from finetune_api.methods import Lora, Method
    from finetune_trainer.train.state import State

    rows = _tokens(steps).view(-1, LENGTH).numpy()
    method = Method(type="lora", lora=Lora(rank=RANK))
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = trainer_over(model, method, rows, steps=steps, batch=ROWS, folder=Path(folder))
        state, cpu = State(), []
        for _ in range(steps):
            started = time.process_time()
            state, _ = trainer._step(state)
            cpu.append(time.process_time() - started)
    return [point.loss or 0.0 for point in state.curve], cpu


def _trainer(model: Path, steps: int) -> tuple[list[float], list[float]]:
    """transformers.Trainer as a user would write it; the sampler is told to keep our order of rows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from finetune_trainer.data.order import step_rows

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(1)
    adapter = get_peft_model(
        network, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    )
    rows = _tokens(steps).view(-1, LENGTH)
    order = [int(row) for step in range(steps) for row in step_rows(len(rows), batch_size=ROWS, seed=1, step=step)]
    data = [{"input_ids": rows[i], "labels": rows[i]} for i in order]
    losses: list[float] = []
    times: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] = time.process_time() - times[-1]

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(data)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=ROWS,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=1,
        )
        InOrder(model=adapter, args=arguments, train_dataset=data, callbacks=[Watch()]).train()
    return losses, times


if __name__ == "__main__":
    sys.exit(main())
