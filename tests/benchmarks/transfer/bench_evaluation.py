"""What the evaluation of a job that asks for nothing new costs, against the mean loss alone over the same rows.

    python -m tests.benchmarks.transfer.bench_evaluation [--rounds 5] [--rows 32]

Two layers in the shape of SmolLM2-135M's with 4096 tokens and LoRA, random rows, fp32, one thread; test rows and
general text of 128 tokens. One side runs the model over the rows of both twice (base and tuned model) and adds up the
loss. The other one is what a run does: one number for each row and model, differences with intervals and verdicts, and
the records as Parquet. Both run in this process and take turns; what counts is its CPU seconds, and of all rounds the
cheapest. It ends with 1 if the losses differ, or if evaluation costs more than 1.05 of the loss alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.trainer.build import random_model, trainer_over

LENGTH, BATCH = 128, 8
SMALL = {"num_hidden_layers": 2, "vocab_size": 4096}
MOST = 1.05
MANY = 2000
"""Rows of each data set whose statistics and records are timed alone."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32, help="of each data set")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evaluation-") as scratch:
        trainer = _trainer(Path(scratch))
        corpora = {name: _corpus(options.rows, seed) for seed, name in enumerate(("test", "general"))}
        sides: dict[str, Callable[[], float]] = {
            "loss alone": lambda: _plain(trainer, corpora),
            "evaluation": lambda: _evaluation(trainer, corpora),
        }
        losses = {name: side() for name, side in sides.items()}  # imports and caches are warm then
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(options.rounds):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                cpu[name].append(_seconds(sides[name]))
                print(f"{name}: {cpu[name][-1]:.2f} CPU s", flush=True)
        plain, ours = cpu["loss alone"], cpu["evaluation"]
        ratio, apart = min(ours) / min(plain), abs(losses["evaluation"] / losses["loss alone"] - 1)
        each = statistics.median(b / a for a, b in zip(plain, ours, strict=True))
        print(f"{2 * options.rows} rows: {min(ours):.2f} against {min(plain):.2f} CPU s, {ratio:.3f}")
        print(f"median of {options.rounds} rounds {each:.3f}; losses apart by {apart:.1e}")
        many = {name: _corpus(MANY, seed) for seed, name in enumerate(corpora)}
        seconds = min(_seconds(lambda: _judged(many)) for _ in range(3))
        print(f"statistics and records of {2 * MANY} rows alone: {seconds:.2f} CPU s")
    return 0 if ratio <= MOST and apart < 1e-5 else 1


def _trainer(folder: Path) -> Any:
    import torch

    from finetune_api.methods import Lora, Method

    torch.set_num_threads(1)
    model = random_model(folder / "model", **SMALL)
    rows = _tokens(BATCH, seed=9)
    method = Method(type="lora", lora=Lora(rank=16))
    trainer, _ = trainer_over(model, method, rows, steps=1, batch=BATCH, folder=folder)
    return trainer


def _tokens(rows: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, SMALL["vocab_size"], (rows, LENGTH))


def _corpus(rows: int, seed: int) -> Any:
    from finetune_trainer.data.corpus import corpus_of

    tokens = _tokens(rows, seed).astype(np.int32)
    return corpus_of(list(tokens), [np.arange(LENGTH) > 0] * rows, [4 * LENGTH] * rows)


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _plain(trainer: Any, corpora: dict[str, Any]) -> float:
    """Mean loss of the first data set."""
    model, means = trainer.model, []
    model.network.eval()
    for _model in ("base", "tuned"):
        for corpus in corpora.values():
            batches = trainer.layout.batches(corpus, np.arange(len(corpus)))
            means.append(sum(float(model.target_nats(batch).sum()) for batch in batches) / corpus.trained_tokens)
    return means[0]


def _evaluation(trainer: Any, corpora: dict[str, Any]) -> float:
    base = {name: trainer.measure_base(corpus) for name, corpus in corpora.items()}
    tuned = {name: trainer.measure(corpus) for name, corpus in corpora.items()}
    _tell(corpora, base, tuned)
    return float(base["test"].scores.loss)


def _judged(corpora: dict[str, Any]) -> None:
    """Without a model: its numbers are drawn."""
    from finetune_trainer.transfer.evaluate import Measured, scores_of

    def measured(corpus: Any, seed: int) -> Measured:
        nats = np.random.default_rng(seed).gamma(4, 100, len(corpus))
        return Measured(scores_of(corpus, nats, None), nats, corpus.targets)

    base = {name: measured(corpus, 1) for name, corpus in corpora.items()}
    tuned = {name: replace(each, nats=each.nats * 0.99) for name, each in base.items()}
    _tell(corpora, base, tuned)


def _tell(corpora: dict[str, Any], base: dict[str, Any], tuned: dict[str, Any]) -> None:
    from finetune_trainer.transfer.evidence import evidence_of, subjects
    from finetune_trainer.transfer.records import encode

    given = subjects(corpora, base, tuned)
    assert len(evidence_of(given, ()).evaluation().data) == len(corpora)
    assert all(encode(subject.data_set(())) for subject in given)


if __name__ == "__main__":
    sys.exit(main())
