"""How much of what a run computes is padding, reported before its first step from the layout of its first steps."""

from __future__ import annotations

from finetune_trainer.statistics import LayoutStatistics

from .corpus import Numbers
from .order import Mixture, share, step_rows
from .pack import computed_tokens, plan

MOST_DOCUMENTS = 8192
"""A mean over so many is exact enough, and takes less than a second."""


def layout_statistics(
    lengths: Numbers,
    mixture: Mixture,
    *,
    total_steps: int,
    batch_size: int,
    seed: int,
    world_size: int,
    max_tokens: int,
    sequence_length: int,
    packing: bool,
) -> LayoutStatistics:
    """`lengths` (rows,) are those of the training rows. The same on every rank."""
    steps = min(total_steps, max(1, MOST_DOCUMENTS // batch_size))
    micro = documents = tokens = computed = unpacked = 0
    for step in range(steps):
        rows = step_rows(mixture, batch_size=batch_size, seed=seed, step=step)
        documents += len(rows)
        tokens += int(lengths[rows].sum())
        for rank in range(world_size):
            sizes = lengths[share(rows, lengths[rows], rank=rank, world_size=world_size)]
            bounds = {"max_tokens": max_tokens, "sequence_length": sequence_length}
            groups = plan(sizes, **bounds, packing=packing)
            micro += len(groups)
            computed += computed_tokens(groups, sizes)
            unpacked += computed_tokens(plan(sizes, **bounds, packing=False), sizes)
    return LayoutStatistics(
        steps=steps, micro_batches=micro, documents=documents, tokens=tokens, computed=computed, unpacked=unpacked
    )
