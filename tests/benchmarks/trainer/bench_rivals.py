"""Training steps of ours beside TRL, Hugging Face's Trainer with PEFT, LLaMA-Factory and Axolotl.

    python -m tests.benchmarks.trainer.bench_rivals [--row lora] [--side ours --side trl-default] [--rounds 3]

SmolLM2-135M in float32 on one thread. All sides get the same tokens in the same order, the same first values of the
adapter and the same optimizer, and must have the same losses to 1e-3 and the same number of trained parameters; a side
that has not is void. What counts is CPU seconds of the process from the end of one step to the end of the next: for
each process the cheapest step after the first, of all rounds the cheapest. Sides take turns, each in a process of its
own. Ours is a whole run from a manifest. Rivals live in virtual environments of their own (tools/rivals.sh).
With --keep FILE what was measured stays in a file, and later calls add their rounds to it.
Prints one Markdown table a row, and exits 1 where a target is missed or a side is void.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(__file__).parent / "rivals"
LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Side:
    script: str
    setting: str = "default"
    environment: str | None = None
    """Of tools/rivals.sh; None: our own, which has the Trainer, PEFT and all that they want."""
    method: str = "lora"
    layers: int | None = None


SIDES = {
    "ours": Side("ours"),
    "ours-compiled": Side("ours", "compiled"),
    "hf": Side("hf"),
    "hf-grouped": Side("hf", "grouped"),
    "hf-flattened": Side("hf", "flattened"),
    "trl-default": Side("trl_sft", environment="trl"),
    "trl": Side("trl_sft", "no checkpointing", environment="trl"),
    "trl-padded": Side("trl_sft", "padded", environment="trl"),
    "llamafactory-default": Side("llamafactory_sft", environment="llamafactory"),
    "llamafactory": Side("llamafactory_sft", "no checkpointing", environment="llamafactory"),
    "axolotl": Side("axolotl_sft", environment="axolotl"),
    "ours-full": Side("ours", method="full"),
    "ours-last4": Side("ours", method="partial", layers=4),
}


@dataclass(frozen=True)
class Target:
    """`side` over `rival` is at most this."""

    side: str
    rival: str
    most: float
    of: str = "cpu"


@dataclass(frozen=True)
class Row:
    sides: tuple[str, ...]
    targets: tuple[Target, ...]
    lengths: tuple[int, ...]
    """Of a step's documents, in tokens."""
    layers: int | None = None
    packing: bool = False


_VARIABLE = tuple(int(n) for n in np.random.default_rng(5).integers(8, 257, 16))

ROWS = {
    "lora": Row(
        ("ours", "ours-compiled", "hf", "trl", "trl-default", "llamafactory", "llamafactory-default", "axolotl"),
        (
            Target("ours", "hf", 0.95),
            Target("ours", "trl", 0.72),
            Target("ours", "trl-default", 0.55),
            Target("ours-compiled", "hf", 0.88),
            Target("ours", "hf", 0.88, "peak"),
            Target("ours-compiled", "hf", 0.62, "peak"),
        ),
        lengths=(256,) * 4,
    ),
    "packing": Row(
        ("ours", "hf", "hf-grouped", "hf-flattened", "trl", "trl-padded", "llamafactory", "axolotl"),
        tuple(
            Target("ours", rival, round(1 / 1.15, 3))
            for rival in ("hf", "hf-grouped", "hf-flattened", "trl", "trl-padded", "llamafactory", "axolotl")
        ),
        lengths=_VARIABLE,
        packing=True,
    ),
    "top4": Row(
        ("ours", "hf", "trl", "trl-default", "llamafactory", "axolotl"),
        (Target("ours", "hf", 0.76), Target("ours", "trl-default", 0.35), Target("ours", "hf", 0.7, "peak")),
        lengths=(256,) * 4,
        layers=4,
    ),
}


@dataclass
class Found:
    """Of one side, all rounds."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    @property
    def cpu(self) -> float:
        return float(min(min(run["cpu"][1:]) for run in self.runs))

    @property
    def peak(self) -> float:
        return float(min(run["peak"] for run in self.runs))

    def apart(self, other: Found) -> float:
        """The largest difference of a loss."""
        mine, theirs = self.runs[0]["losses"], other.runs[0]["losses"]
        if len(mine) != len(theirs):
            return float("inf")
        return float(max(abs(a - b) for a, b in zip(mine, theirs, strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=[*ROWS], help="default: all")
    parser.add_argument("--side", action="append", choices=[*SIDES], help="default: all of the row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="the first is not counted")
    parser.add_argument("--keep", type=Path, help="a file of earlier rounds, for this machine alone")
    options = parser.parse_args()
    model = _smollm2()
    print(f"{_machine()}; one thread; {options.rounds} rounds of {options.steps} steps")
    missed = 0
    for name in options.row or ROWS:
        row = ROWS[name]
        sides = [side for side in row.sides if side in (options.side or row.sides)]
        found = {side: Found(runs) for side, runs in _kept(options.keep).get(name, {}).items()}
        found = {side: found.get(side, Found()) for side in row.sides if side in sides or side in found}
        _measure_all(found, row, sides, model=model, rounds=options.rounds, steps=options.steps)
        if options.keep:
            options.keep.write_text(json.dumps(_kept(options.keep) | {name: {s: f.runs for s, f in found.items()}}))
        missed += _judge_all(name, row, found)
    return 1 if missed else 0


def _kept(file: Path | None) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Runs by row and side."""
    return json.loads(file.read_text()) if file and file.exists() else {}


def _measure_all(
    found: dict[str, Found], row: Row, sides: Sequence[str], *, model: Path, rounds: int, steps: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="rivals-") as folder:
        documents = _documents(Path(folder) / "documents", row, steps, model=model) if rounds else Path()
        for turn in range(rounds):
            for side in sides if turn % 2 == 0 else reversed(sides):
                if not found[side].trouble:
                    _measure(found[side], side, row, documents, steps=steps, model=model, scratch=Path(folder) / "run")


def _judge_all(name: str, row: Row, found: dict[str, Found]) -> int:
    """Prints the row; answers how much is wrong with it."""
    print(f"\n## {name}\n")
    first = next((its for its in found.values() if its.runs), None)
    if first is None:
        return 1
    trained = sum(row.lengths) - len(row.lengths)
    print("| side | runs | CPU s a step | first step | trained tokens a CPU s | peak MB | loss apart | versions |")
    print("|---|---|---|---|---|---|---|---|")
    missed = 0
    for side, its in found.items():
        if not its.runs:
            print(f"| {side} | {its.trouble} | | | | | | |")
            continue
        apart = its.apart(first)
        same = apart <= LOSS_TOLERANCE and its.runs[0]["trainable"] == first.runs[0]["trainable"]
        missed += not same
        begin = min(run["cpu"][0] for run in its.runs)
        print(
            f"| {side} | {len(its.runs)} | {its.cpu:.2f} | {begin:.2f} | {trained / its.cpu:.1f} | {its.peak:.0f} "
            f"| {apart:.1e}{'' if same else ' **void**'} | {its.runs[0]['versions']} |"
        )
    print()
    return missed + sum(_judge(target, found) for target in row.targets)


def _judge(target: Target, found: dict[str, Found]) -> bool:
    mine, theirs = found.get(target.side), found.get(target.rival)
    if mine is None or theirs is None or not mine.runs or not theirs.runs:
        return False
    ratio = getattr(mine, target.of) / getattr(theirs, target.of)
    missed = ratio > target.most
    print(f"- {target.side} / {target.rival}, {target.of}: {ratio:.3f} (target {target.most}){' MISSED' * missed}")
    return missed


def _measure(found: Found, name: str, row: Row, documents: Path, *, steps: int, model: Path, scratch: Path) -> None:
    side = SIDES[name]
    with tempfile.TemporaryDirectory(dir=scratch.parent, prefix="run-") as folder:
        task = {
            "model": str(model),
            "documents": str(documents),
            "scratch": folder,
            "steps": steps,
            "rows": len(row.lengths),
            "length": max(row.lengths),
            "layers": side.layers or row.layers,
            "packing": row.packing,
            "setting": side.setting,
            "method": side.method,
        }
        command = [_interpreter(side.environment), str(SCRIPTS / f"{side.script}.py"), json.dumps(task)]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(folder), cwd=folder)
    if done.returncode:
        found.trouble = f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}"
        print(f"{name} failed:\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
        return
    run = json.loads(done.stdout.strip().splitlines()[-1])
    found.runs.append(run)
    losses = " ".join(f"{loss:.5f}" for loss in run["losses"])
    print(
        f"    {name:20} {min(run['cpu'][1:]):6.2f} CPU s a step, first {run['cpu'][0]:6.2f}, "
        f"peak {run['peak']:5.0f} MB, losses {losses}, {run['trainable']:,} parameters in {'+'.join(run['dtypes'])}",
        file=sys.stderr,
        flush=True,
    )


def _environment(folder: str) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": f"{folder}/huggingface",
        "TOKENIZERS_PARALLELISM": "false",
        "DISABLE_VERSION_CHECK": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "ACCELERATE_USE_CPU": "true",
    }


def _interpreter(environment: str | None) -> str:
    if environment is None:
        return sys.executable
    made = subprocess.run([ROOT / "tools" / "rivals.sh", environment], capture_output=True, text=True, check=True)
    return made.stdout.strip()


def _documents(folder: Path, row: Row, steps: int, *, model: Path) -> Path:
    """train.jsonl for our data path, and what it makes of it for the others, in the order of our steps."""
    from finetune_api.spec import FineTuneJobSpec
    from finetune_trainer.data.load import load_datasets
    from finetune_trainer.data.order import step_rows

    folder.mkdir(parents=True)
    chosen = np.random.default_rng(7)
    words = _words(model)
    lengths = row.lengths if row.packing else row.lengths * steps
    texts = [" ".join(chosen.choice(words, n)) for n in lengths]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "validation.jsonl").write_text(json.dumps({"text": " ".join(words[:8])}) + "\n")
    manifest = {
        "model": {"uri": f"file://{model}"},
        "data": {
            "train": [{"uri": f"file://{folder}/train.jsonl"}],
            "validation": {"uri": f"file://{folder}/validation.jsonl"},
            "sequenceLength": max(row.lengths),
        },
        "output": {"uri": f"file://{folder}/output"},
    }
    spec = FineTuneJobSpec.model_validate_json(json.dumps(manifest))
    data = load_datasets(spec.data, tokenizer_path=model, cache=folder / "cache", seed=1)
    corpus = data.train
    assert sorted(corpus.lengths) == sorted(lengths), (corpus.lengths, lengths)
    if not row.packing:
        order = [step_rows(len(corpus), batch_size=len(row.lengths), seed=1, step=step) for step in range(steps)]
        corpus = corpus.take(np.concatenate(order))
    np.savez(folder / "train.npz", tokens=corpus.tokens, offsets=corpus.offsets)
    return folder


def _words(model: Path) -> list[str]:
    """Words of one token each, with and without a space before them."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    plain = {word for word in vocabulary if word.isascii() and word.islower() and word.isalpha() and len(word) > 3}
    return sorted(word for word in plain if f"Ġ{word}" in vocabulary)


def _smollm2() -> Path:
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "models.py"], capture_output=True, text=True, check=True, cwd=ROOT / "tools"
    )
    return Path(made.stdout.strip().splitlines()[-1])


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
