"""What a remedy against forgetting saves and costs: an English model (SmolLM2-135M) learns German, with and without it.

    python -m tests.benchmarks.transfer.bench_forgetting [--seeds 1 2 3] [--minutes 30] [--steps 16] [--only none …]

German: prose of the Debian Reference (package debian-reference-de); the held-out rows come from other paragraphs.
General text: English newspaper editorials (tools/corpora.py); those that are replayed, or that importance and
activations are measured on, are not the ones that forgetting is measured on. All
runs make the same number of steps over the same German rows, through the trainer's own setup and loop, on one thread.
Bits per byte of held-out text, tuned minus base: of German that is what the run gained, of English what it
forgot. The adapter's scale is no run of its own: it is the run without a remedy, measured at a smaller scale.

It is bounded: no run begins that would exceed --minutes of CPU, judged by the longest before it. It is resumable: a run
that is in <cache>/forgetting/results.jsonl with the same settings is not made again. It ends with 1 if no remedy halts
40 % of the forgetting at 10 % of the gain.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from packages import cache_root  # noqa: E402

DEB = "debian-reference-de"
ROWS = {"train": 240, "test": 20, "measured": 40, "replayed": 80}
LETTERS = 140
"""Of a German row, at most: about 50 tokens."""
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "replay 25 %": {"replay": {"fraction": 0.25}},
    "klToBase on training rows": {"klToBase": {"beta": 0.5}},
    "replay 25 % and klToBase": {"replay": {"fraction": 0.25}, "klToBase": {"beta": 0.5}},
    "replay of its own text": {"replay": {"source": "self", "fraction": 0.25}},
    "l2sp": {"l2sp": {"strength": 1e-4}},
    "ewc": {"ewc": {"strength": 1e-4}},
    "drift": {"drift": {}},
}
"""l2sp and ewc far below their defaults: both are squared distances of all weights, which this rate makes large."""
_BY_GENERAL_TEXT = {"ewc", "drift"}
"""Measure the general text before the first step, and replay none of it."""
SCALES = (0.75, 0.5)
SAVED, PAID = 0.4, 0.1

Scores = Mapping[str, float]
"""Bits per byte, tuned minus base: `German`, `English`."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", nargs="+", choices=list(REMEDIES), default=list(REMEDIES))
    options = parser.parse_args()
    found = Results(settings=[options.steps, options.batch, options.rate, ROWS, LETTERS])
    with tempfile.TemporaryDirectory(prefix="forgetting-") as scratch:
        bench = Bench(Path(scratch), steps=options.steps, batch=options.batch, rate=options.rate)
        for seed in options.seeds:
            for name in options.only:
                if found.has(name, seed):
                    continue
                spent = time.process_time()
                if spent + found.longest > 60 * options.minutes:
                    print(f"stopped after {spent / 60:.1f} CPU minutes, before {name} of seed {seed}: run it again")
                    print(table(found))
                    return 1
                for measured, scores in bench.run(name, seed=seed).items():
                    found.add(measured, seed, scores, seconds=time.process_time() - spent)
    print(f"{time.process_time() / 60:.1f} CPU minutes in this process")
    print(table(found))
    relative = found.relative()
    return 0 if any(map(succeeds, relative.values())) or not relative else 1


class Results:
    """Of all runs with these settings; each is on disk once it is measured."""

    def __init__(self, settings: list[Any], file: Path | None = None) -> None:
        self._file = file or cache_root() / "forgetting" / "results.jsonl"
        self._settings = json.loads(json.dumps(settings))
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._rows = [row for row in map(json.loads, lines) if row["settings"] == self._settings]

    @property
    def longest(self) -> float:
        """CPU seconds of a run."""
        return max((row["seconds"] for row in self._rows), default=0.0)

    def has(self, name: str, seed: int) -> bool:
        return any((row["name"], row["seed"]) == (name, seed) for row in self._rows)

    def add(self, name: str, seed: int, scores: Scores, *, seconds: float) -> None:
        row = {"settings": self._settings, "name": name, "seed": seed, "scores": dict(scores), "seconds": seconds}
        self._rows.append(row)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        told = ", ".join(f"{text} {difference:+.4f}" for text, difference in scores.items())
        print(f"seed {seed}, {name}: {told}, {seconds:.0f} CPU s", flush=True)

    def by_name(self) -> dict[str, list[dict[str, Any]]]:
        names = dict.fromkeys(row["name"] for row in self._rows)
        return {name: [row for row in self._rows if row["name"] == name] for name in names}

    def relative(self) -> dict[str, tuple[float, float]]:
        """By remedy: (part of the forgetting that it saved, part of the gain that it cost), means over the seeds that
        were also run without one, and in which that forgot something on average. More than 1 of the forgetting: English
        got better than it was."""
        runs = self.by_name()
        plain = {row["seed"]: row["scores"] for row in runs.pop("none", [])}
        parts = {}
        for name, rows in runs.items():
            both = [(row["scores"], plain[row["seed"]]) for row in rows if row["seed"] in plain]
            if sum(without["English"] for _, without in both) > 0:
                parts[name] = (_lost(both, "English"), _lost(both, "German"))
        return parts


def _lost(both: Iterable[tuple[Scores, Scores]], text: str) -> float:
    own, plain = zip(*((one[text], other[text]) for one, other in both), strict=True)
    return 1 - sum(own) / sum(plain)


def succeeds(relative: tuple[float, float]) -> bool:
    return relative[0] >= SAVED and relative[1] <= PAID


class Bench:
    def __init__(self, folder: Path, *, steps: int, batch: int, rate: float) -> None:
        from models import smollm2

        self._folder, self._model = folder, smollm2()
        self._training = {"maxSteps": steps, "batchSize": batch, "learningRate": rate, "evaluateEvery": steps}
        write_data(folder)

    def run(self, name: str, *, seed: int) -> dict[str, Scores]:
        """By remedy, of this run: also those that cost no run of their own."""
        import torch

        from finetune_api.plan import JobIdentity, RunPlan
        from finetune_trainer.parallel.single import Single
        from finetune_trainer.rundir import RunDir
        from finetune_trainer.store.opening import open_folder
        from finetune_trainer.train.setup import prepare

        torch.set_num_threads(1)
        own = self._folder / f"{list(REMEDIES).index(name)}-{seed}"
        os.environ["FINETUNE_CACHE"] = str(self._folder / "cache")
        job = JobIdentity(namespace="bench", name="forgetting", uid=own.name)
        plan = RunPlan.model_validate({"job": job.to_json(), "spec": self._spec(name, own, seed)}, strict=False)
        device = torch.device("cpu")
        output = open_folder(plan.spec.output.uri, prefix="")
        setup = prepare(plan, gang=Single(), device=device, output=output, run_dir=RunDir(own / "run"))
        trainer, texts = setup.trainer, {"German": setup.data.test, "English": setup.data.slices["english"]}
        corpora = {text: corpus for text, corpus in texts.items() if corpus is not None}
        before = {text: trainer.measure_base(corpus).scores.bits_per_byte for text, corpus in corpora.items()}
        trainer.run(trainer.checkpointer.resume(trainer.weights))

        def scores() -> Scores:
            after = {text: trainer.measure(corpus).scores.bits_per_byte for text, corpus in corpora.items()}
            return {text: after[text] - before[text] for text in corpora}

        measured = {name: scores()}
        for scale in SCALES if name == "none" else ():
            setup.attached.apply_at(scale)  # type: ignore[attr-defined]
            measured[f"adapter scale {scale:g}"] = scores()
        return measured

    def _spec(self, name: str, own: Path, seed: int) -> dict[str, Any]:
        regularization = {key: dict(value) for key, value in REMEDIES[name].items()}
        general = f"file://{self._folder}/replayed.jsonl"
        held_to = {"general": {"uri": general}} if _BY_GENERAL_TEXT & set(regularization) else {}
        if regularization.get("replay", {"source": "self"}).get("source") != "self":
            regularization["replay"]["uri"] = general
        return {
            "model": {"uri": f"file://{self._model}"},
            "data": {
                "train": [{"uri": f"file://{self._folder}/train.jsonl"}],
                "test": {"uri": f"file://{self._folder}/test.jsonl"},
                "slices": [{"name": "english", "uri": f"file://{self._folder}/measured.jsonl"}],
                **held_to,
                "format": "text", "sequenceLength": 96, "appendEos": False,
            },
            "training": {**self._training, "seed": seed},
            "regularization": regularization,
            "output": {"uri": f"file://{own}/output"},
        }  # fmt: skip


def write_data(folder: Path) -> None:
    from corpora import write_corpora

    german = [_cut(text, LETTERS) for text in _german()]
    write_corpora(folder, train=2, heldout=400, general=2)
    english = [json.loads(line)["text"] for line in (folder / "nyt.jsonl").read_text().splitlines()]
    files = {"test": german[::10], "measured": english[::2], "replayed": english[1::2]}
    files["train"] = [text for place, text in enumerate(german) if place % 10]
    for name, rows in files.items():
        lines = [json.dumps({"text": text}) + "\n" for text in rows[: ROWS[name]]]
        (folder / f"{name}.jsonl").write_text("".join(lines))


def _german() -> Iterator[str]:
    """Paragraphs of prose."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "-q", DEB], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        [package] = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
        [file] = Path(scratch).rglob("*.txt.gz")
        text = gzip.decompress(file.read_bytes()).decode()
    for block in re.split(r"\n\s*\n", text):
        told = " ".join(block.split())
        letters = sum(character.isalpha() or character == " " for character in told)
        if len(told) > 200 and told.endswith(".") and letters > 0.9 * len(told):
            yield told


def _cut(text: str, letters: int) -> str:
    """At a space."""
    return " ".join(text.split())[: letters + 1].rpartition(" ")[0]


def table(found: Results) -> str:
    relative = found.relative()
    lines = ["| remedy | German | English | forgetting saved | gain lost | seeds |", "|---|---:|---:|---:|---:|---:|"]
    for name, rows in found.by_name().items():
        german, english = (_mean([row["scores"][text] for row in rows]) for text in ("German", "English"))
        saved, paid = (f"{100 * part:.0f} %" for part in relative[name]) if name in relative else ("", "")
        lines.append(f"| {name} | {german} | {english} | {saved} | {paid} | {len(rows)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    """And the standard deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):+.3f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
