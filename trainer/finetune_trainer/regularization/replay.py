"""Replay: rows of general text, added to the training rows of each step.

Which rows, is a function of the step's number and the seed alone, so a resumed run and any number of processes replay
the same ones. All rows are replayed once, in shuffled order, before any is replayed again. With 12 training rows in a
step, fraction 0.25 adds 4; fraction 0.05 adds 0.63: one row in some steps and none in others, evenly spread.

Rows of several earlier tasks take turns, one of each task, and each task repeats its own rows when all were replayed.

    loss of a step = (nats of training rows + w · nats of replayed rows) / (their tokens + w · replayed tokens)

with w = mean tokens of a training row / mean tokens of a replayed row. So `fraction` is a fraction of the loss as well:
without w, long documents would outweigh training rows with short answers, however few there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from finetune_api.measurements import MOST_TASKS
from finetune_trainer.data.corpus import Corpus, Numbers
from finetune_trainer.random_streams import REPLAYED


@dataclass(frozen=True)
class Replay:
    corpus: Corpus
    per_step: float
    """Rows of a step, on average."""
    weight: float
    """Of a replayed token, relative to a training token."""
    seed: int
    parts: tuple[int, ...] = ()
    """Rows of each task, one task after another; (): all are one text."""

    @classmethod
    def of(
        cls, corpus: Corpus, *, per_step: float, tokens_per_row: float, seed: int, parts: tuple[int, ...] = ()
    ) -> Replay:
        """`tokens_per_row`: mean trained tokens of a training row."""
        parts = parts or (len(corpus),)
        ends = np.cumsum(parts).tolist()
        means = [corpus.targets[end - rows : end].mean() for rows, end in zip(parts, ends, strict=True) if rows]
        own = float(np.mean(means)) if means else 0.0
        return cls(corpus, per_step, tokens_per_row / max(1.0, own), seed, parts)

    def of_step(self, step: int) -> Numbers:
        """(rows,): those of optimizer step `step`, counted from 0."""
        first, end = math.floor(step * self.per_step), math.floor((step + 1) * self.per_step)
        return np.array([self._row(place) for place in range(first, end)], np.int64)

    def _row(self, place: int) -> int:
        """The row at this place of the endless sequence."""
        parts = self.parts or (len(self.corpus),)
        turn, part = divmod(place, len(parts))
        first = sum(parts[:part])
        passed, within = divmod(turn, parts[part])
        return first + int(_shuffled(len(self.corpus), self.seed, passed, first, first + parts[part])[within])


@lru_cache(maxsize=2 * MOST_TASKS)
def _shuffled(rows: int, seed: int, passed: int, first: int, end: int) -> Numbers:
    """(end - first,): the order of these rows among themselves."""
    return np.argsort(REPLAYED.raw(rows, seed, passed)[first:end], kind="stable")
