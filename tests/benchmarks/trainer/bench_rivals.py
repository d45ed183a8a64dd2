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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .documents import documents
from .rows import ROWS, SIDES, Row, Target

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(__file__).parent / "rivals"
LOSS_TOLERANCE = 1e-3


@dataclass
class Found:
    """Of one side, all rounds."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    @property
    def cpu(self) -> float:
        return float(min(min(run["cpu"][1:]) for run in self.runs))

    @property
    def first_epoch(self) -> float:
        """A step is an epoch where this is asked."""
        return float(min(run["before"] + min(run["cpu"][1:]) for run in self.runs))

    @property
    def start(self) -> float:
        return float(min(run["start"] for run in self.runs))

    @property
    def peak(self) -> float:
        return float(min(run["peak"] for run in self.runs))

    def apart(self, other: Found) -> float:
        """The largest difference of a loss of `other`'s steps; a side may go on for more epochs."""
        mine, theirs = self.runs[0]["losses"], other.runs[0]["losses"]
        if len(mine) < len(theirs):
            return float("inf")
        return float(max(abs(a - b) for a, b in zip(mine, theirs, strict=False)))


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
        for _ in _measure_all(found, row, sides, model=model, rounds=options.rounds, steps=options.steps):
            if options.keep:
                mine = {name: {side: its.runs for side, its in found.items()}}
                options.keep.write_text(json.dumps(_kept(options.keep) | mine))
        missed += _judge_all(name, row, found)
    return 1 if missed else 0


def _kept(file: Path | None) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Runs by row and side."""
    return json.loads(file.read_text()) if file and file.exists() else {}


def _measure_all(
    found: dict[str, Found], row: Row, sides: Sequence[str], *, model: Path, rounds: int, steps: int
) -> Iterator[None]:
    """Once for each run."""
    with tempfile.TemporaryDirectory(prefix="rivals-") as folder:
        made = documents(Path(folder) / "documents", row, steps, model=model) if rounds else Path()
        for turn in range(rounds):
            for side in sides if turn % 2 == 0 else reversed(sides):
                if not found[side].trouble:
                    _measure(found[side], side, row, made, steps=steps, model=model, scratch=Path(folder) / "run")
                    yield


def _judge_all(name: str, row: Row, found: dict[str, Found]) -> int:
    """Prints the row; answers how much is wrong with it."""
    print(f"\n## {name}\n")
    trained = sum(row.lengths) - len(row.lengths)
    print("| side | runs | CPU s a step | first step | from start | trained tokens a CPU s | peak MB | loss apart |")
    print("|---|---|---|---|---|---|---|---|")
    void: list[str] = []
    for side, its in found.items():
        if not its.runs and not its.trouble:
            continue
        if not its.runs:
            print(f"| {side} | {its.trouble} | | | | | | |")
            continue
        like = next(other for name, other in found.items() if other.runs and SIDES[name].method == SIDES[side].method)
        apart = its.apart(like)
        same = apart <= LOSS_TOLERANCE and its.runs[0]["trainable"] == like.runs[0]["trainable"]
        if not same:
            void.append(side)
        begin = min(run["before"] + run["cpu"][0] for run in its.runs)
        print(
            f"| {side} | {len(its.runs)} | {its.cpu:.2f} | {begin:.2f} | {its.start:.1f} | {trained / its.cpu:.1f} "
            f"| {its.peak:.0f} | {apart:.1e}{'' if same else ' **void**'} |"
        )
    print()
    for versions in dict.fromkeys(its.runs[0]["versions"] for its in found.values() if its.runs):
        print(f"- {versions}")
    print()
    valid = {side: its for side, its in found.items() if side not in void}
    return len(void) + sum(_judge(target, valid) for target in row.targets)


def _judge(target: Target, found: dict[str, Found]) -> bool:
    mine, theirs = found.get(target.side), found.get(target.rival)
    if mine is None or theirs is None or not mine.runs or not theirs.runs:
        return False
    above, below = target.of if isinstance(target.of, tuple) else (target.of, target.of)
    ratio = getattr(mine, above) / getattr(theirs, below)
    what = above if above == below else f"{above} / {below}"
    missed = ratio > target.most
    print(f"- {target.side} / {target.rival}, {what}: {ratio:.3f} (target {target.most}){' MISSED' * missed}")
    return missed


def _measure(found: Found, name: str, row: Row, data: Path, *, steps: int, model: Path, scratch: Path) -> None:
    side = SIDES[name]
    with tempfile.TemporaryDirectory(dir=scratch.parent, prefix="run-") as folder:
        task = {
            "model": str(data / "tiny" if row.tiny else model),
            "documents": str(data),
            "scratch": folder,
            "steps": steps,
            "rows": len(row.lengths),
            "length": max(row.lengths),
            "layers": side.layers or row.layers,
            "packing": row.packing,
            "setting": side.setting,
            "method": side.method,
            "epochs": side.epochs,
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
