"""Which rows an optimizer step sees. A function of the step's number and nothing else: a run that resumes at step 700
needs no saved cursor, and another number of processes sees the same rows in the same steps.

Sources may be weighted: with weight 2 each row of a source is seen twice in an epoch, with 0.5 every epoch sees another
half of them, with 1.25 all of them and a quarter twice. data.mixing sets the weights by the sizes of the sources.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from finetune_trainer.random_streams import NEWEST, ORDER, PART

from .corpus import Numbers


@dataclass(frozen=True)
class Mixture:
    """Rows of several sources, one source after another, and how often an epoch sees each."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]
    streams: int = NEWEST
    """Generation of random streams, see `random_streams`."""

    @classmethod
    def even(cls, n_rows: int) -> Mixture:
        """Each row once."""
        return cls((n_rows,), (1.0,))

    @property
    def per_epoch(self) -> int:
        """Rows that an epoch sees, counted each time; the same in every epoch."""
        return sum(whole * n + part for n, (whole, part) in zip(self.rows, self._times(), strict=True))

    def seen(self, per_row: Numbers) -> float:
        """The sum of `per_row` (rows,) over an epoch, on average: each row counts with its source's weight."""
        edges = np.cumsum((0, *self.rows))
        times = [(whole * n + part) / max(1, n) for n, (whole, part) in zip(self.rows, self._times(), strict=True)]
        return float(sum(t * per_row[a:b].sum() for t, a, b in zip(times, edges, edges[1:], strict=False)))

    def epoch(self, *, seed: int, epoch: int) -> Numbers:
        """(per_epoch,): its rows, unshuffled."""
        parts: list[Numbers] = []
        start = 0
        for source, (n, (whole, part)) in enumerate(zip(self.rows, self._times(), strict=True)):
            rows = np.arange(start, start + n)
            parts += [rows] * whole
            if part:
                keys = PART.raw(n, seed, epoch, source, generation=self.streams)
                chosen = np.sort(np.argsort(keys, kind="stable")[:part])
                parts.append(rows[chosen])
            start += n
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _times(self) -> list[tuple[int, int]]:
        """For each source: how often all its rows are seen, and how many rows once more. A source with rows is never
        left out of an epoch, however small its weight."""
        times = []
        for n, weight in zip(self.rows, self.weights, strict=True):
            whole = int(weight)
            part = round((weight - whole) * n)
            times.append((whole, part if whole or not n else max(1, part)))
        return times


def tempered(rows: Sequence[int], weights: Sequence[float], temperature: float) -> tuple[float, ...]:
    """Weights by which an epoch has as many rows, of each source in proportion to weight · rows^(1 / temperature). 100
    and 900 rows at 2: 250 and 750 of an epoch of 1,000, so weights 2.5 and 0.83."""
    shares = [weight * n ** (1 / temperature) for n, weight in zip(rows, weights, strict=True)]
    total = sum(weight * n for n, weight in zip(rows, weights, strict=True))
    return tuple(
        total * share / (sum(shares) * n) if n else weight
        for share, n, weight in zip(shares, rows, weights, strict=True)
    )


def steps_per_epoch(rows: int | Mixture, *, batch_size: int) -> int:
    """10 rows in batches of 4 are 3 steps: the last batch of an epoch is short, never dropped."""
    return -(-_mixture(rows).per_epoch // batch_size)


def total_steps(rows: int | Mixture, *, batch_size: int, epochs: int, max_steps: int | None = None) -> int:
    """Optimizer steps of a whole run: `max_steps` where it is set, passing over the rows as often as that takes, or
    stopping within an epoch; otherwise all steps of `epochs`. A run without rows has no steps."""
    each = steps_per_epoch(rows, batch_size=batch_size)
    return each * epochs if max_steps is None or not each else max_steps


def step_rows(rows: int | Mixture, *, batch_size: int, seed: int, step: int) -> Numbers:
    """(up to batch_size,): the rows of optimizer step `step`, counted from 0. Each epoch is shuffled again, by sorting
    raw random keys, so that a run that resumes in a newer image finds the same order.

    `rows` may be a number: that many, each once an epoch.
    """
    mixture = _mixture(rows)
    epoch, within = divmod(step, steps_per_epoch(mixture, batch_size=batch_size))
    return _shuffled(mixture, seed, epoch)[within * batch_size : (within + 1) * batch_size]


@lru_cache(maxsize=2)
def _shuffled(mixture: Mixture, seed: int, epoch: int) -> Numbers:
    rows = mixture.epoch(seed=seed, epoch=epoch)
    order = rows[np.argsort(ORDER.raw(len(rows), seed, epoch), kind="stable")]
    order.flags.writeable = False
    return order


def _mixture(rows: int | Mixture) -> Mixture:
    return rows if isinstance(rows, Mixture) else Mixture.even(rows)


def share(rows: Numbers, lengths: Numbers, *, rank: int, world_size: int) -> Numbers:
    """The rows of a step that one rank computes: each row at one rank, about equally many tokens at each.

    `lengths[i]` is the length of `rows[i]`. The longest rows are dealt first, each to the rank with the least so far:
    lengths 5 4 3 3 over two ranks give 5 + 3 and 4 + 3. Fewer rows than ranks leave ranks without any.
    """
    if len(rows) != len(lengths):
        raise ValueError(f"{len(rows)} rows with {len(lengths)} lengths")
    loads = [(0, r) for r in range(world_size)]
    mine = np.zeros(len(rows), np.bool_)
    for place in np.argsort(-lengths, kind="stable"):
        load, lightest = loads[0]
        heapq.heapreplace(loads, (load + int(lengths[place]), lightest))
        mine[place] = lightest == rank
    return rows[mine]
