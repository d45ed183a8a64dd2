"""Negative transfer: slices on which the tuned model is worse than something cheaper.

Each slice is compared with every reference (the base model, artifacts of earlier and perhaps cheaper jobs) by a
one-sided paired test of "worse by no more than the practical margin"; Holm's method holds the chance of any false flag
among slices and references below 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_trainer.statistics.differences import ALPHA
from finetune_trainer.statistics.multiplicity import holm
from finetune_trainer.statistics.paired import Paired, worse_p_value


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One slice against one reference."""

    slice: str
    reference: str
    p_value: float | None
    """Adjusted by Holm. None: too few rows for a test."""
    flagged: bool


def negative_transfer(
    pairs: Mapping[tuple[str, str], Paired], *, margin: float | None = None, alpha: float = ALPHA
) -> tuple[Transfer, ...]:
    """pairs: by (slice, reference), with the reference as the base of each. margin: a loss that is tolerated, in the
    measure's unit; default each measure's practical margin. In the order of the keys."""
    keys = sorted(pairs)
    single = {
        key: worse_p_value(pairs[key], margin=pairs[key].measure.margin if margin is None else margin) for key in keys
    }
    tested = [key for key in keys if single[key] is not None]
    adjusted = dict(zip(tested, holm([p for key in tested if (p := single[key]) is not None]), strict=True))
    return tuple(
        Transfer(
            slice=key[0],
            reference=key[1],
            p_value=adjusted.get(key),
            flagged=adjusted.get(key, 1.0) < alpha,
        )
        for key in keys
    )
