"""The budgets of restarts: one record each, with a counter each in `status.restarts`.

`status.Restarts` has a field for each of them, `budget` decides by them, and the reference and the `finetune` command
show them. `classes` defines which failure class uses which budget.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pauses:
    """Backoff between a failure and the next attempt, in seconds. The first restart is immediate, the second follows
    after `first`, and each further one after twice as long, up to `longest`."""

    first: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limit and behaviour of one kind of restart."""

    field: str
    """Name of its counter in `status.restarts`."""
    retried: str
    """Text in the column `retried` of the reference."""
    told: str
    """Text after the number of restarts, in `finetune status`."""
    always_told: bool = False
    """Whether `finetune status` shows it even if there were no restarts."""
    free: bool = False
    """Whether restarts are unlimited, even if `retry.maxRestarts` is 0."""
    most: int | None = None
    """Maximum number of restarts. None: bounded by `retry`, or by what shrinks with each restart."""
    enough: str = ""
    """Why there is no further attempt once `most` is reached."""
    change: str = ""
    """What the next attempt does differently, in words."""
    skips: bool = False
    """Whether the next attempt skips the batch at which the last one failed, if `training.skipBadBatch` is set."""
    halves: bool = False
    """Whether the next attempt halves the micro-batch. Counted if the size of the last one is unknown."""
    pauses: Pauses


LONG = Pauses(first=10, longest=300)
SHORT = Pauses(first=1, longest=60)
"""Backoff that keeps a node that evicts immediately from being flooded with pods."""

COUNTED = Budget(field="counted", retried="yes, counted", told="counted", always_told=True, pauses=LONG)
"""Bounded by `retry.maxRestarts` within `retry.window`."""

FREE = Budget(field="free", retried="yes, free", told="free", always_told=True, free=True, pauses=SHORT)

HALVED = Budget(
    field="out_of_memory", retried="yes, with half the micro-batch, down to one row",
    told="after running out of memory", halves=True, pauses=SHORT,
)  # fmt: skip

ONCE = Budget(
    field="non_finite", retried="yes, once", told="after a NaN or infinite loss", most=1,
    enough="the loss was not finite in the second attempt either", change="retrying from the last checkpoint",
    skips=True, pauses=SHORT,
)  # fmt: skip

RESIZED = Budget(field="resized", retried="yes, free", told="resized", free=True, pauses=SHORT)
"""Restarts with a different number of nodes, which are not failures."""

BUDGETS = (COUNTED, FREE, HALVED, ONCE, RESIZED)
