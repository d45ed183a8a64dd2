"""Held-out rows out of the training rows, and how to tell rows that should not be in two sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import Validation

from .read import Row

DEFAULT_FRACTION = 0.05
MOST_BY_DEFAULT = 500


def hold_out(rows: Sequence[Row], validation: Validation | None, *, seed: int) -> tuple[list[Row], list[Row]]:
    """(training rows, validation rows), each in their order.

    Whole groups are held out until the share is reached; without groupBy, rows of the same content are a group. Which
    ones, depends on seed and content alone, so other files or another order of the same rows split the same way. One
    group alone is never split: the default then holds out nothing, an explicit fraction is refused.
    """
    fraction = validation.fraction if validation and validation.fraction else DEFAULT_FRACTION
    wanted = max(1, round(len(rows) * fraction))
    if validation is None:
        wanted = min(wanted, MOST_BY_DEFAULT)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(_group(row, validation.group_by if validation else None), []).append(index)
    if len(groups) < 2 and validation is None:
        return list(rows), []
    if len(groups) < 2:
        raise FinetuneError(
            Reason.InvalidSpec,
            "data.validation would hold out all training rows: they are one group",
            "Choose another groupBy, or give a validation file.",
        )
    held: set[int] = set()
    *may_go, _ = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    for group in may_go:
        if len(held) >= wanted:
            break
        held.update(groups[group])
    return [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]


def _group(row: Row, key: str | None) -> str:
    if key is None:
        return json.dumps(row.fields, sort_keys=True)
    if row.fields.get(key) is None:
        raise row.problem(
            Reason.DataUnreadable,
            f"{key}, by which data.validation.groupBy keeps rows together, is missing",
            "Give every training row the key, or choose another groupBy.",
        )
    return json.dumps(row.fields[key], sort_keys=True)


def fingerprint(text: str) -> bytes:
    """The same for texts that differ in case and white space only."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
