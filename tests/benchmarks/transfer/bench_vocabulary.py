"""What new tokens save and gain: SmolLM2-135M learns technical English, Lisp and Japanese, with its own vocabulary and
with one that is extended by merges of the training rows.

    python -m tests.benchmarks.transfer.bench_vocabulary [--seeds 1] [--steps 16] [--only english lisp japanese]
    python -m tests.benchmarks.transfer.bench_vocabulary --tokens 200 1000

With --tokens nothing is trained: it says how many tokens the held-out rows take after so many new tokens, in seconds.

english: the manual of git (package git-doc). lisp: the calculator of Emacs (emacs-el). japanese: the Debian Reference
(debian-reference-ja). The held-out rows come from other paragraphs. Both runs of a corpus make the same steps over the
same rows, so over equal bytes, by LoRA through the trainer's own setup and loop, on one thread. Bits per byte do not
depend on the tokenizer, so the columns compare.

It is resumable: a run that is in <cache>/vocabulary-bench.jsonl with the same settings is not made again. It ends with
1 if an extended vocabulary does not take fewer tokens and reach fewer bits per byte on each corpus.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from packages import cache_root  # noqa: E402

CORPORA = {
    "english": ("git-doc", "*.txt", 0.85),
    "lisp": ("emacs-el", "calc/*.el.gz", 0.5),
    "japanese": ("debian-reference-ja", "*.txt.gz", 0.85),
}
"""Package, files in it, and the share of letters and spaces from which on a paragraph counts."""
ROWS = {"train": 1600, "test": 24, "validation": 4}
BYTES = 160
"""Of a row, at most."""
NEW_TOKENS = 512
VOCABULARIES: dict[str, dict[str, Any]] = {
    "own": {},
    "extended": {"vocabulary": {"mine": True, "maxNewTokens": NEW_TOKENS}},
}

Found = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--only", nargs="+", choices=list(CORPORA), default=list(CORPORA))
    parser.add_argument("--tokens", type=int, nargs="+", help="only count tokens, for so many new ones")
    options = parser.parse_args()
    from models import smollm2

    model = smollm2()
    if options.tokens:
        for corpus in options.only:
            print(count(corpus, model, options.tokens), flush=True)
        return 0
    settings = [options.steps, options.batch, options.rate, ROWS, BYTES, NEW_TOKENS]
    file = cache_root() / "vocabulary-bench.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    kept = [row for row in map(json.loads, lines) if row["settings"] == settings]
    shown = []
    for corpus in options.only:
        for seed in options.seeds:
            for name in VOCABULARIES:
                known = [r for r in kept if (r["corpus"], r["seed"], r["vocabulary"]) == (corpus, seed, name)]
                if not known:
                    known = [{"settings": settings, **run(corpus, name, model=model, seed=seed, options=options)}]
                    with file.open("a") as out:
                        out.write(json.dumps(known[0]) + "\n")
                shown.append(known[0])
                print(line(known[0]), flush=True)
    print(f"{time.process_time() / 60:.1f} CPU minutes in this process\n{table(shown)}")
    pairs = zip(shown[::2], shown[1::2], strict=True)
    return 0 if all(new["tokens"] < old["tokens"] and new["tuned"] < old["tuned"] for old, new in pairs) else 1


def count(corpus: str, model: Path, sizes: Sequence[int]) -> str:
    """A row of a table: tokens per byte of held-out text, by the model's tokenizer and by extended ones."""
    from tokenizers import Tokenizer

    from finetune_trainer.vocabulary.bpe import Bpe
    from finetune_trainer.vocabulary.extension import Growing, counted

    rows, bpe = list(paragraphs(*CORPORA[corpus])), Bpe.of(model)
    held_out = rows[::10]
    words = counted(bpe, (row for place, row in enumerate(rows) if place % 10))
    size = sum(len(row.encode()) for row in held_out)
    cells = [sum(len(each.ids) for each in bpe.backend.encode_batch(held_out)) / size]
    for most in sizes:
        growing = Growing(bpe, most=most)
        growing.mine(words)
        extended = Tokenizer.from_str(growing.made().encoded(bpe).decode())
        cells.append(sum(len(each.ids) for each in extended.encode_batch(held_out)) / size)
    own, *others = cells
    return f"| {corpus} | {own:.3f} | " + " | ".join(f"{cell:.3f} ({cell / own - 1:+.0%})" for cell in others) + " |"


def run(corpus: str, name: str, *, model: Path, seed: int, options: argparse.Namespace) -> Found:
    """One run, measured on the held-out rows before and after."""
    import torch

    from finetune_api.plan import JobIdentity, RunPlan
    from finetune_trainer.parallel.single import Single
    from finetune_trainer.rundir import RunDir
    from finetune_trainer.store.opening import open_folder
    from finetune_trainer.train.setup import prepare

    torch.set_num_threads(1)
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="vocabulary-") as scratch:
        folder = Path(scratch)
        os.environ["FINETUNE_CACHE"] = str(folder / "cache")
        size = write_data(folder, corpus)
        spec = {
            "model": {"uri": f"file://{model}"},
            "data": {
                "train": [{"uri": f"file://{folder}/train.jsonl"}],
                "test": {"uri": f"file://{folder}/test.jsonl"},
                "validation": {"uri": f"file://{folder}/validation.jsonl"},
                "format": "text", "sequenceLength": 256, "appendEos": False,
            },
            "training": {
                "maxSteps": options.steps, "batchSize": options.batch, "learningRate": options.rate,
                "evaluateEvery": options.steps, "seed": seed,
            },
            "output": {"uri": f"file://{folder}/output"},
            **VOCABULARIES[name],
        }  # fmt: skip
        job = JobIdentity(namespace="bench", name="vocabulary", uid=f"{corpus}-{name}-{seed}")
        plan = RunPlan.model_validate({"job": job.to_json(), "spec": spec}, strict=False)
        output = open_folder(plan.spec.output.uri, prefix="")
        device = torch.device("cpu")
        setup = prepare(plan, gang=Single(), device=device, output=output, run_dir=RunDir(folder / "run"))
        trainer, test = setup.trainer, setup.data.test
        assert test is not None
        before = trainer.measure_base(test).scores.bits_per_byte
        state = trainer.run(trainer.checkpointer.resume(trainer.weights))
        after = trainer.measure(test).scores.bits_per_byte
    return {
        "corpus": corpus, "vocabulary": name, "seed": seed, "bytes": size, "tokens": len(test.tokens) / size,
        "base": before, "tuned": after, "trained": state.trained_tokens,
        "seconds": time.process_time() - began,
    }  # fmt: skip


def write_data(folder: Path, corpus: str) -> int:
    """Returns the bytes of the held-out rows."""
    rows = list(paragraphs(*CORPORA[corpus]))
    files = {"test": rows[::10], "validation": rows[1::10]}
    files["train"] = [row for place, row in enumerate(rows) if place % 10 > 1]
    for name, texts in files.items():
        lines = [json.dumps({"text": text}) + "\n" for text in texts[: ROWS[name]]]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return sum(len(text.encode()) for text in files["test"][: ROWS["test"]])


def paragraphs(package: str, pattern: str, share: float) -> Iterator[str]:
    """Different paragraphs, cut to `BYTES`, in the order of the files."""
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "-q", package], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        [archive] = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, scratch], check=True)
        for file in sorted(Path(scratch).rglob(pattern)):
            content = file.read_bytes()
            text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
            for block in re.split(r"\n\s*\n", text):
                told = " ".join(block.split())
                letters = sum(character.isalpha() or character == " " for character in told)
                row = told.encode()[:BYTES].decode(errors="ignore")
                if len(told.encode()) > BYTES and letters > share * len(told) and row.casefold() not in seen:
                    seen.add(row.casefold())
                    yield row


def line(found: Found) -> str:
    return (
        f"{found['corpus']}, {found['vocabulary']} vocabulary, seed {found['seed']}: {found['tokens']:.3f} tokens per "
        f"byte, {found['base']:.3f} to {found['tuned']:.3f} bits per byte, {found['seconds']:.0f} CPU s"
    )


def table(found: list[Found]) -> str:
    lines = [
        "| corpus | vocabulary | tokens per byte | bits per byte, untrained | after training |",
        "|---|---|---:|---:|---:|",
    ]
    for row in found:
        numbers = " | ".join(f"{row[key]:.3f}" for key in ("tokens", "base", "tuned"))
        lines.append(f"| {row['corpus']} | {row['vocabulary']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
