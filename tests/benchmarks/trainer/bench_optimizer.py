"""AdamW with moments in 8 bits beside AdamW: what they learn of the same rows, and what they cost.

    python tests/benchmarks/trainer/bench_optimizer.py [--steps 12] [--method full lora]

SmolLM2-135M-Instruct on movie reviews, 2 x 128 tokens a step, each method at its default rate, fp32, one thread. Each
side is a process of its own. The update is what `Weights.step` takes, of all steps the cheapest; held out are reviews
that no step has seen. Checkpoint: the tensors that one holds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from build import peak_megabytes, trainer_over

ROOT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache" / "finetune-operator"))
MODEL = CACHE / "models" / "SmolLM2-135M-Instruct"
LENGTH, BATCH, HELD_OUT = 128, 2, 12


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--method", nargs="+", choices=("full", "lora"), default=("full", "lora"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        method, optimizer = options.side.split("-")
        print(json.dumps(_measure(method, optimizer, options.rows, options.steps)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = _rows(Path(folder), options.steps * BATCH + HELD_OUT)
        for method in options.method:
            for optimizer in ("adamw", "adamw8bit"):
                command = [sys.executable, __file__, "--side", f"{method}-{optimizer}", "--rows", rows]
                done = subprocess.run([*command, "--steps", str(options.steps)], check=True, capture_output=True)
                print(f"{method} {optimizer}: {done.stdout.decode().splitlines()[-1]}", flush=True)
    return 0


def _rows(folder: Path, count: int) -> Path:
    import numpy as np
    from tokenizers import Tokenizer

    for script, *arguments in (("models.py",), ("corpora.py", str(folder), "--train", "512")):
        subprocess.run([sys.executable, ROOT / "tools" / script, *arguments], check=True, stdout=subprocess.DEVNULL)
    examples = map(json.loads, (folder / "movie-train.jsonl").read_text().splitlines())
    text = "\n".join(f"{example['text']} This is {example['label']}." for example in examples)
    tokens = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids[: count * LENGTH]
    np.save(folder / "rows.npy", np.array(tokens).reshape(count, LENGTH))
    return folder / "rows.npy"


def _measure(method: str, optimizer: str, file: Path, steps: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from finetune_api.methods import Method
    from finetune_trainer.data.corpus import corpus_of
    from finetune_trainer.train.optimizer import default_peak
    from finetune_trainer.train.state import State

    torch.set_num_threads(1)
    rows = np.load(file)
    kind = Method.model_validate({"type": method}, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = trainer_over(
            MODEL, kind, rows[HELD_OUT:], steps=steps, batch=BATCH, folder=Path(folder), optimizer=optimizer
        )
        rate = default_peak(method=method, hidden_size=trainer.model.hidden_size)
        trainer = replace(trainer, course=replace(trainer.course, peak_rate=rate))
        updates, update = [], trainer.weights.step

        def timed(*given: Any, **named: Any) -> float:
            started = time.process_time()
            norm: float = update(*given, **named)
            updates.append(time.process_time() - started)
            return norm

        trainer.weights.step = timed
        started = time.process_time()
        state = trainer.run(State())
        spent = time.process_time() - started
        flags = [np.arange(LENGTH) > 0] * HELD_OUT
        held_out = corpus_of(list(rows[:HELD_OUT].astype(np.int32)), flags, [LENGTH] * HELD_OUT)
        return {
            "losses": [round(point.loss or 0.0, 4) for point in state.curve],
            "held out": round(trainer.measure(held_out).scores.loss, 4),
            "CPU s a step": round(spent / steps, 2),
            "of it the update": round(min(updates), 3),
            "peak MB": round(peak_megabytes()),
            "checkpoint MB": round(sum(t.nbytes for t in trainer.weights.tensors().values()) / 1e6, 1),
        }


if __name__ == "__main__":
    sys.exit(main())
