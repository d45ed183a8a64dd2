"""What replay of earlier tasks saves when three tasks are learned in sequence, each job continuing from the one before.

    python -m tests.benchmarks.transfer.bench_sequence [--seeds 1 2 3] [--steps 60] [--rate 5e-3] [--only none earlier]

A model of 0.2 million parameters first learns to copy words, with all weights. Then it learns three tasks by LoRA, one
after another: to say words backwards, to shift their letters, to repeat each letter. With replay a quarter of the rows
of a step are training rows of the tasks before: of the files that the earlier artifact names (`source: earlier`), or
of the same files, named in `replay.uri`. Everything runs through preflight, trainer and artifact, and the numbers are
those of `continual` in the manifest of the third artifact: loss of held-out rows in bits per byte, of one thread. It
ends with 1 if replay does not halve what backward transfer costs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.measurements import Continual
from tests.support.task_sequence import output, trained
from tests.support.tiny_model import tiny_model

TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "backwards": lambda word: word[::-1],
    "shift": lambda word: "".join(chr((ord(letter) - 96) % 26 + 97) for letter in word),
    "repeat": lambda word: "".join(2 * letter for letter in word),
}
LEARNED = tuple(TASKS)[1:]
ROWS, HELD_OUT = 400, 40
REPLAY = 0.25
ARMS = {
    "none": "no replay",
    "earlier": f"`replay: {{fraction: {REPLAY:g}, source: earlier}}`",
    "named": f"`replay: {{fraction: {REPLAY:g}, uri: …}}`",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    started = time.process_time()
    found: dict[str, list[Continual]] = {arm: [] for arm in options.only}
    with tempfile.TemporaryDirectory(prefix="sequence-") as scratch, pytest.MonkeyPatch.context() as patch:
        root = Path(scratch)
        tiny_model(root / "random")
        _write(root, TASKS)
        begin = _spec(root, "copy", model=root / "random", seed=0, steps=3 * options.steps, rate=1e-3, method="full")
        trained(root, "copy", begin, patch)
        for seed in options.seeds:
            for arm, results in found.items():
                results.append(_sequence(root, arm, seed, steps=options.steps, rate=options.rate, patch=patch))
                print(f"seed {seed}, {arm}: {results[-1].told()}", flush=True)
    print(
        f"{(time.process_time() - started) / 60:.1f} CPU minutes, {options.steps} steps a task, rate {options.rate:g}\n"
    )
    print(table(found))
    costs = {arm: statistics.mean(each.bwt or 0.0 for each in results) for arm, results in found.items()}
    return 0 if all(cost >= 0.5 * costs.get("none", cost) for arm, cost in costs.items() if arm != "none") else 1


def table(found: dict[str, list[Continual]]) -> str:
    lines = ["| | mean bits per byte | backward transfer | forgetting |", "|---|---:|---:|---:|"]
    for arm, each in found.items():
        columns = ([one.acc for one in each], [one.bwt or 0.0 for one in each], [one.forgetting or 0.0 for one in each])
        lines.append(f"| {ARMS[arm]} | {' | '.join(map(_shown, columns))} |")
    return "\n".join(lines)


def _shown(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}".replace("-", "−")


def _sequence(root: Path, arm: str, seed: int, *, steps: int, rate: float, patch: pytest.MonkeyPatch) -> Continual:
    """Of the third artifact."""
    before = ""
    for at, task in enumerate(LEARNED):
        name = f"{task}-{arm}-{seed}"
        spec = _spec(
            root, task, model=output(root, "copy"), seed=seed, steps=steps, rate=rate, method="lora", name=name
        )
        if before:
            spec["continueFrom"] = output(root, before).as_uri()
        if at and arm != "none":
            files = {"uri": f"{_replayed(root, LEARNED[:at]).as_uri()}/"} if arm == "named" else {"source": "earlier"}
            spec["regularization"] = {"replay": {"fraction": REPLAY, **files}}
        manifest = trained(root, name, spec, patch)
        before = name
    assert manifest.continual is not None
    return manifest.continual.judged()


def _spec(
    root: Path, task: str, *, model: Path, seed: int, steps: int, rate: float, method: str, name: str = ""
) -> dict[str, Any]:
    return {
        "model": {"uri": model.as_uri()},
        "data": {
            "train": [{"uri": (root / f"{task}.jsonl").as_uri()}],
            "test": {"uri": (root / f"{task}-test.jsonl").as_uri()},
            "sequenceLength": 128,
        },
        "method": {"type": method},
        "training": {"maxSteps": steps, "batchSize": 8, "learningRate": rate, "seed": seed, "evaluateEvery": steps},
        "output": {"uri": output(root, name or task).as_uri()},
    }


def _write(root: Path, tasks: Iterable[str]) -> None:
    chosen = random.Random(0)
    for task in tasks:
        words = sorted({"".join(chosen.choices("abcdefghij", k=chosen.randint(3, 7))) for _ in range(2 * ROWS)})
        chosen.shuffle(words)
        rows = [json.dumps({"prompt": f"{task} {word}: ", "completion": TASKS[task](word)}) for word in words]
        (root / f"{task}.jsonl").write_text("\n".join(rows[:ROWS]))
        (root / f"{task}-test.jsonl").write_text("\n".join(rows[ROWS : ROWS + HELD_OUT]))


def _replayed(root: Path, tasks: tuple[str, ...]) -> Path:
    """A folder with the training rows of these tasks."""
    folder = root / f"replay-{len(tasks)}"
    folder.mkdir(exist_ok=True)
    for task in tasks:
        (folder / f"{task}.jsonl").write_text((root / f"{task}.jsonl").read_text())
    return folder


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
