"""What each method costs on the same real rows, and the table of docs/methods.md made from it.

    python tests/benchmarks/trainer/bench_methods.py [--train 128] [--heldout 80] [--general 8] [--only METHOD ...]

SmolLM2-135M learns to tell good movie reviews from bad ones: one epoch, batches of 8, each method with its own
defaults, float32, one thread, seed 1. A run is a process of its own, from the manifest to the committed artifact, as in
a pod. Test rows and general text were never trained on, and are measured before and after by the run itself; their
scores are printed and not put into the table, for one seed and few rows rank nothing. CPU seconds are those of the
process while it was in its steps, which other load on the machine disturbs least; memory is its largest resident size.
What was measured stays in --folder, so that an interrupted table can be resumed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, get_args

import psutil

from finetune_api import names
from finetune_api.methods import Method
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.rundir import RunDir

ROOT = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache" / "finetune-operator"))
DOCUMENT = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
METHODS = get_args(Method.model_fields["type"].annotation)
POLL_SECONDS = 0.1

Measured = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=int, default=128, help="training rows")
    parser.add_argument("--heldout", type=int, default=80, help="test rows")
    parser.add_argument("--general", type=int, default=8, help="rows of general text")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--folder", type=Path, default=ROOT / ".finetune" / "methods", help="data, runs and results")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    sizes = {"train": options.train, "heldout": options.heldout, "general": options.general}
    _prepare(folder / "data", sizes)
    found = []
    for method in options.only:
        done = folder / f"{method}-{'-'.join(map(str, sizes.values()))}.json"
        if not done.exists():
            done.write_text(json.dumps(measure(method, folder)))
        found.append(row := json.loads(done.read_text()))
        print(json.dumps(row), flush=True)
    if len(found) == len(METHODS):
        write(DOCUMENT, text(found, sizes))
        print(f"the table is in {DOCUMENT.relative_to(ROOT)}")
    return 0


def _prepare(data: Path, sizes: dict[str, int]) -> None:
    for script, *arguments in (
        ("models.py",),
        ("corpora.py", str(data), *(part for name, size in sizes.items() for part in (f"--{name}", str(size)))),
    ):
        subprocess.run([sys.executable, ROOT / "tools" / script, *arguments], check=True, stdout=subprocess.DEVNULL)


def measure(method: str, folder: Path) -> Measured:
    """One run, followed from outside."""
    home = folder / method
    plan = RunPlan(job=JobIdentity(namespace="bench", name=method, uid=f"bench-{method}"), spec=_spec(method, folder))
    run_dir = RunDir(home / "run")
    run_dir.path.mkdir(parents=True, exist_ok=True)
    run_dir.clear()
    file = home / "plan.json"
    file.write_text(json.dumps(plan.to_json()))
    command = [sys.executable, "-m", "finetune_trainer.train.main", "--plan", file, "--run-dir", run_dir.path]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **quiet, names.ENV_CACHE: str(folder / "cache")}
    with (home / "log").open("w") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        seconds, peak = _follow(running, run_dir)
    words = run_dir.result()
    if running.returncode or words is None or not (words.plan and words.evaluation and words.artifact):
        raise SystemExit(f"{method} failed:\n{(home / 'log').read_text()[-3000:]}")
    found = {each.name: [each.base, each.tuned] for each in words.evaluation.data}
    return {
        "method": method,
        "trains": words.plan.trainable_parameters,
        "rate": words.plan.learning_rate,
        "steps": words.plan.total_steps,
        "accuracy": found.get("test", [None, None]),
        "general": found.get("general", [None, None]),
        "training": seconds.get("training", 0.0),
        "whole": sum(seconds.values()),
        "peak": peak,
        "artifact": _weight_bytes(folder / method / "output"),
    }


def _spec(method: str, folder: Path) -> FineTuneJobSpec:
    def file(name: str) -> dict[str, str]:
        return {"uri": (folder / "data" / name).as_uri()}

    spec = {
        "model": {"uri": (CACHE / "models" / "SmolLM2-135M-Instruct").as_uri()},
        "data": {
            "train": [file("movie-train.jsonl")],
            "test": file("movie-test.jsonl"),
            "general": file("general.jsonl"),
            "validation": {"fraction": 0.02},
            "classification": {"instruction": "Is this text positive or negative?"},
            "sequenceLength": 512,
        },
        "method": {"type": method},
        # Measured once, at the end: the last step is the best one.
        "training": {"epochs": 1, "batchSize": 8, "seed": 1, "precision": "float32", "evaluateEvery": 100000},
        "checkpoint": {"every": 100000},
        "output": {"uri": (folder / method / "output").as_uri(), "overwrite": True},
    }
    return FineTuneJobSpec.model_validate(spec, strict=False)


def _follow(running: subprocess.Popen[bytes], run_dir: RunDir) -> tuple[dict[str, float], int]:
    """(CPU seconds by phase, peak resident bytes)."""
    process = psutil.Process(running.pid)
    seconds: dict[str, float] = {}
    peak, before = 0, 0.0
    while running.poll() is None:
        try:
            times, peak = process.cpu_times(), max(peak, process.memory_info().rss)
        except psutil.Error:
            break
        spent = times.user + times.system
        beat = run_dir.heartbeats().get(0)
        phase = beat.phase if beat else "loading"
        seconds[phase] = seconds.get(phase, 0.0) + spent - before
        before = spent
        time.sleep(POLL_SECONDS)
    running.wait()
    return seconds, peak


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def text(found: list[Measured], sizes: dict[str, int]) -> str:
    """The table with what has to be known about it, in Markdown."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    steps = found[0]["steps"]
    head = (
        f"SmolLM2-135M-Instruct, {sizes['train']} movie reviews, {steps} steps of 8 rows, every method with its "
        f"defaults, float32, one thread of a shared CPU; {packages}; {date.today()}. The whole run measures "
        f"{sizes['heldout']} test rows and general text before and after."
    )
    lines = [
        "| method | trains | CPU s, training | whole run | peak memory | weights |",
        "|---|---:|---:|---:|---:|---:|",
        *(_line(row) for row in found),
    ]
    return f"{head}\n\n" + "\n".join(lines)


def _line(row: Measured) -> str:
    cells = (
        row["method"],
        f"{row['trains']:,}",
        f"{row['training']:.0f}",
        f"{row['whole']:.0f}",
        f"{row['peak'] / 2**20:,.0f} MiB",
        _size(row["artifact"]),
    )
    return f"| {' | '.join(cells)} |"


def _size(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"


def write(document: Path, content: str) -> None:
    """Between the markers, which must be there."""
    before = document.read_text()
    after, count = re.subn(
        f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", lambda m: f"{m[1]}{content}\n{m[2]}", before, flags=re.S
    )
    if count != 1:
        raise SystemExit(f"{document} needs {BEGIN} and {END} once")
    document.write_text(after)


if __name__ == "__main__":
    sys.exit(main())
