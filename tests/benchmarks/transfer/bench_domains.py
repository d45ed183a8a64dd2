"""What a narrow job costs other domains, what a small job costs itself, and the lines of the manifest that help.

    python -m tests.benchmarks.transfer.bench_domains [--seeds 1 2 3] [--only transfer overfitting]

A model of 0.3 million parameters first learns to write sentences of movie reviews and newspaper editorials
(tools/corpora.py), with all weights. Then it is tuned.

transfer: by LoRA on tweets. The domains that it knows are slices; one that got worse than the base model is flagged.
overfitting: with all weights on few sentences of product reviews, many times over, and measured on others.

Everything runs through preflight, trainer and artifact, and the numbers are those of `run.json`: bits
per byte of held-out sentences, tuned minus base. It ends with 1 if a remedy of transfer leaves as many slices flagged
as none, or if early stopping does not make the model better in fewer steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.report.record import RECORD_FILE, RunRecord
from tests.support.task_sequence import output, trained
from tests.support.tiny_model import tiny_model

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

KNOWN = ("movie", "nyt")
HELD_OUT, CHOSEN_ON, ROWS, BYTES = 60, 40, 800, 128
"""Rows of a domain that measure, that choose and that train at most, and the bytes of a row at most."""
FEW = 50
"""Training rows of the small job."""
BEGIN, STEPS, EVERY = 400, 100, 10
"""Steps of all weights at first and of a run, and between two evaluations."""

Found = dict[str, list[dict[str, float]]]
"""By arm, the figures of each seed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=list(PITFALLS), default=list(PITFALLS))
    options = parser.parse_args()
    started = time.process_time()
    right = []
    with tempfile.TemporaryDirectory(prefix="domains-") as scratch, pytest.MonkeyPatch.context() as patch:
        bench = Bench(Path(scratch), patch)
        for pitfall in options.only:
            arms, holds = PITFALLS[pitfall]
            found: Found = {arm: [] for arm in arms}
            for seed in options.seeds:
                for arm, spec in arms.items():
                    found[arm].append(bench.run(pitfall, arm, spec, seed))
                    print(f"{pitfall}, {arm}, seed {seed}: {found[arm][-1]}", flush=True)
            right.append(holds(found))
            print(f"\n{table(found)}\n", flush=True)
    print(f"{(time.process_time() - started) / 60:.1f} CPU minutes")
    return 0 if all(right) else 1


class Bench:
    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root, self._patch = root, patch
        write_data(root)
        tiny_model(root / "random", hidden=96)
        begin = self._spec("known", model=root / "random", steps=BEGIN, rate=3e-3) | {"method": {"type": "full"}}
        self._trained("base", begin)

    def run(self, pitfall: str, arm: str, changes: Mapping[str, Any], seed: int) -> dict[str, float]:
        name = f"{pitfall}-{seed}-{sum(map(ord, arm))}"
        domain, rate = {"transfer": ("tweets", 1e-2), "overfitting": ("amazon", 5e-3)}[pitfall]
        spec = self._spec(domain, model=output(self._root, "base"), steps=STEPS, rate=rate, seed=seed, name=name)
        merge(spec, changes)
        self._trained(name, spec)
        record = RunRecord.model_validate_json((output(self._root, name) / RECORD_FILE).read_bytes(), strict=False)
        figures = {each.name: each.difference or 0.0 for each in record.evaluation.data if each.name != "validation"}
        if pitfall == "transfer":
            return figures | {"slices flagged": float(len(record.evaluation.negative_transfer))}
        return figures | {"steps": float(record.curve[-1].step)}

    def _trained(self, name: str, spec: dict[str, Any]) -> None:
        trained(self._root, name, json.loads(json.dumps(spec).replace("ROOT", self._root.as_uri())), self._patch)

    def _spec(self, domain: str, *, model: Path, steps: int, rate: float, seed: int = 0, name: str = "base") -> Any:
        return {
            "model": {"uri": model.as_uri()},
            "data": {
                "train": [{"uri": f"ROOT/{domain}-train.jsonl"}],
                "test": {"uri": f"ROOT/{domain}-test.jsonl"},
                "validation": {"uri": f"ROOT/{domain}-validation.jsonl"},
                "format": "text", "sequenceLength": 136,
            },
            "method": {"type": "lora", "lora": {"rank": 16}},
            "training": {
                "maxSteps": steps, "batchSize": 16, "learningRate": rate, "seed": seed, "evaluateEvery": steps,
            },
            "output": {"uri": output(self._root, name).as_uri()},
        }  # fmt: skip


SLICES = {"slices": [{"name": name, "uri": f"ROOT/{name}-test.jsonl"} for name in KNOWN]}
MIXED = [{"uri": "ROOT/tweets-train.jsonl"}, {"uri": "ROOT/known-train.jsonl", "weight": 0.25}]
TRANSFER: dict[str, dict[str, Any]] = {
    "tweets alone": {"data": SLICES},
    "`train: [{uri: tweets}, {uri: known, weight: 0.25}]`": {"data": {**SLICES, "train": MIXED}},
    "`guards: {slices: {maxRegression: 0.05}, onViolation: remedy}`": {
        "data": SLICES, "guards": {"slices": {"maxRegression": 0.05}, "onViolation": "remedy"},
    },
}  # fmt: skip
FULL = {"type": "full", "lora": None}
OVERFITTING: dict[str, dict[str, Any]] = {
    f"{STEPS} steps of all weights": {"method": FULL},
    f"`evaluateEvery: {EVERY}, earlyStopping: {{patience: 3}}`": {
        "method": FULL,
        "training": {"evaluateEvery": EVERY, "earlyStopping": {"patience": 3}},
    },
    "`method: {type: lora}`": {},
}


def fewer_flags(found: Found) -> bool:
    flags = [sum(each["slices flagged"] for each in runs) for runs in found.values()]
    return max(flags[1:]) < flags[0]


def better_and_shorter(found: Found) -> bool:
    plain, stopped, _ = found.values()
    return all(a["test"] > b["test"] and a["steps"] > b["steps"] for a, b in zip(plain, stopped, strict=True))


PITFALLS = {"transfer": (TRANSFER, fewer_flags), "overfitting": (OVERFITTING, better_and_shorter)}


def merge(spec: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(spec.get(key), dict):
            merge(spec[key], value)
        elif value is None:
            del spec[key]
        else:
            spec[key] = value


def write_data(folder: Path) -> None:
    from corpora import write_corpora

    write_corpora(folder / "corpora")

    def texts(name: str) -> list[str]:
        lines = (folder / "corpora" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line)["text"] for line in lines]
        return [row for row in rows if len(row.encode()) <= BYTES][: HELD_OUT + CHOSEN_ON + ROWS]

    domains = {"movie": texts("movie-train"), **{name: texts(name) for name in ("nyt", "tweets", "amazon")}}
    parts: dict[str, dict[str, list[str]]] = {}
    for name, rows in domains.items():
        held_out, rest = rows[: HELD_OUT + CHOSEN_ON], rows[HELD_OUT + CHOSEN_ON :]
        parts[name] = {"test": held_out[:HELD_OUT], "validation": held_out[HELD_OUT:], "train": rest}
    parts["amazon"]["train"] = parts["amazon"]["train"][:FEW]
    parts["known"] = {part: [row for name in KNOWN for row in parts[name][part]] for part in parts["nyt"]}
    for name, files in parts.items():
        for part, rows in files.items():
            (folder / f"{name}-{part}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def table(found: Found) -> str:
    columns = list(dict.fromkeys(key for runs in found.values() for run in runs for key in run))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for arm, runs in found.items():
        lines.append(f"| {arm} | {' | '.join(_shown([run[key] for run in runs]) for key in columns)} |")
    return "\n".join(lines)


def _shown(values: list[float]) -> str:
    if all(value.is_integer() for value in values):
        return ", ".join(f"{value:g}" for value in values)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.3f}{spread}".replace("-", "−")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
