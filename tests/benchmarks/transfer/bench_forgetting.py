"""What a remedy against forgetting saves and costs: an English model (SmolLM2-135M) learns German, with and without it.

    python -m tests.benchmarks.transfer.bench_forgetting [--seeds 1 2 3] [--steps 24] [--only plain replay …]

German: the Debian Reference (package debian-reference-de), of which every tenth paragraph is held out. General text:
English prose of the Python language reference; one half of the documents is measured, and the other replayed. All runs
make the same steps over the same German rows. Bits per byte of held-out text, tuned minus base: of German that is what
the run gained, of English what it forgot. It ends with 1 if no remedy halts 40 % of the forgetting at 10 % of the gain.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

DEB = "debian-reference-de"
REMEDIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "replay 25 %": {"replay": {"fraction": 0.25}},
    "replay 5 %": {"replay": {"fraction": 0.05}},
    "replay 5 % and KL": {"replay": {"fraction": 0.05}, "klToBase": {"beta": 0.5}},
    "replay 25 % and KL": {"replay": {"fraction": 0.25}, "klToBase": {"beta": 0.5}},
    "KL on training rows": {"klToBase": {"beta": 0.5}},
}
SAVED, PAID = 0.4, 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--only", nargs="+", choices=list(REMEDIES), default=list(REMEDIES))
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="forgetting-") as scratch:
        folder = Path(scratch)
        write_data(folder)
        for seed in options.seeds:
            for name in options.only:
                measured = run(folder, name, seed=seed, steps=options.steps, rate=options.rate)
                found.setdefault(name, []).append(measured)
                print(f"seed {seed}, {name}: German {measured[0]:+.4f}, English {measured[1]:+.4f}", flush=True)
    print(table(found))
    return 0 if any(map(succeeds, _relative(found).values())) or len(found) < 2 else 1


def write_data(folder: Path) -> None:
    from corpora import write_corpora

    paragraphs = list(_german())
    test, train = paragraphs[::10], [text for place, text in enumerate(paragraphs) if place % 10]
    for name, texts in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_corpora(folder, train=2, heldout=2)
    whole = (folder / "general.jsonl").read_text().splitlines(keepends=True)
    (folder / "measured.jsonl").write_text("".join(whole[::2]))
    (folder / "replayed.jsonl").write_text("".join(whole[1::2]))


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


def run(folder: Path, name: str, *, seed: int, steps: int, rate: float) -> tuple[float, float, float]:
    """(difference of bits per byte of German, of English, CPU seconds)"""
    from packages import cache_root

    output = folder / f"{name}-{seed}".replace(" ", "-").replace("%", "")
    regularization = json.loads(json.dumps(REMEDIES[name]))
    if "replay" in regularization:
        regularization["replay"]["uri"] = f"file://{folder}/replayed.jsonl"
    spec = {
        "model": {"uri": f"file://{cache_root()}/models/SmolLM2-135M-Instruct"},
        "data": {
            "train": [{"uri": f"file://{folder}/train.jsonl", "maxRows": 200}],
            "test": {"uri": f"file://{folder}/test.jsonl"},
            "general": {"uri": f"file://{folder}/measured.jsonl"},
            "format": "text", "sequenceLength": 64, "appendEos": False,
        },
        "evaluation": {"maxRows": 48},
        "training": {"maxSteps": steps, "batchSize": 4, "learningRate": rate, "seed": seed, "evaluateEvery": steps},
        "output": {"uri": f"file://{output}"},
    }  # fmt: skip
    spec |= {"regularization": regularization} if regularization else {}
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "forgetting"}}
    file = folder / "job.json"
    file.write_text(json.dumps({**job, "spec": spec}))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "finetune_trainer.cli.main", "run", str(file)]
    environ = {**os.environ, "FINETUNE_CACHE": str(cache_root())}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = json.loads((output / "run.json").read_text())
    by_name = {each["name"]: each for each in record["measurements"] if each["metric"] == "bitsPerByte"}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return by_name["test"]["difference"], by_name["general"]["difference"], cpu


def _relative(found: dict[str, list[tuple[float, float, float]]]) -> dict[str, tuple[float, float]]:
    """By remedy: (part of the forgetting that it saved, part of the gain that it cost), means over seeds."""
    means = {name: [sum(each) / len(each) for each in zip(*runs, strict=True)] for name, runs in found.items()}
    plain = means.get("plain")
    if plain is None:
        return {}
    return {name: (1 - own[1] / plain[1], 1 - own[0] / plain[0]) for name, own in means.items() if name != "plain"}


def succeeds(relative: tuple[float, float]) -> bool:
    return relative[0] >= SAVED and relative[1] <= PAID


def table(found: dict[str, list[tuple[float, float, float]]]) -> str:
    relative = _relative(found)
    lines = ["| remedy | German | English | forgetting saved | gain lost | CPU s |", "|---|---:|---:|---:|---:|---:|"]
    for name, runs in found.items():
        german, english, cpu = (sum(each) / len(each) for each in zip(*runs, strict=True))
        saved, paid = (f"{100 * part:.0f} %" for part in relative[name]) if name in relative else ("", "")
        lines.append(f"| {name} | {german:+.3f} | {english:+.3f} | {saved} | {paid} | {cpu:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
