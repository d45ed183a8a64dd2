"""Which rows an optimizer step sees. A function of the step's number and nothing else: a run that resumes at step 700
needs no saved cursor, and another number of processes sees the same rows in the same steps.
"""

from __future__ import annotations

import heapq
from functools import lru_cache

import numpy as np

from .corpus import Numbers


def steps_per_epoch(n_rows: int, *, batch_size: int) -> int:
    """10 rows in batches of 4 are 3 steps: the last batch of an epoch is short, never dropped."""
    return -(-n_rows // batch_size)


def total_steps(n_rows: int, *, batch_size: int, epochs: int, max_steps: int | None = None) -> int:
    """Optimizer steps of a whole run."""
    steps = steps_per_epoch(n_rows, batch_size=batch_size) * epochs
    return steps if max_steps is None else min(steps, max_steps)


def step_rows(n_rows: int, *, batch_size: int, seed: int, step: int) -> Numbers:
    """(up to batch_size,): the rows of optimizer step `step`, counted from 0. Each epoch is shuffled anew."""
    epoch, within = divmod(step, steps_per_epoch(n_rows, batch_size=batch_size))
    return _shuffled(n_rows, seed, epoch)[within * batch_size : (within + 1) * batch_size]


@lru_cache(maxsize=2)
def _shuffled(n_rows: int, seed: int, epoch: int) -> Numbers:
    """numpy promises PCG64's raw stream for good, but not what `Generator.permutation` makes of it: sort by raw keys,
    so that a run that resumes in a newer image finds the same order."""
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n_rows)
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False
    return order


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
