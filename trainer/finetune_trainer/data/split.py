"""Samples of rows, held-out rows out of the training rows, and how to tell rows that should not be in two sets."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from finetune_api.data import Validation
from finetune_api.failures import FinetuneError, Reason

from .corpus import Flags
from .read import Row, without_nulls

DEFAULT_FRACTION = 0.05
MOST_BY_DEFAULT = 500

Keys = NDArray[np.uint64]


def hold_out(keys: Keys, twins: Keys, validation: Validation | None) -> Flags:
    """(rows,): whether the training row is held out, by its `key_of` and its `fingerprint`.

    Whole groups are held out until the share is reached; without groupBy, rows that are the same example are a group.
    Which ones, depends on seed and content alone, so other files or another order of the same rows split the same way.
    One group alone is never split: the default then holds out nothing, an explicit fraction is refused.
    """
    fraction = validation.fraction if validation and validation.fraction else DEFAULT_FRACTION
    wanted = max(1, round(len(keys) * fraction))
    if validation is None:
        wanted = min(wanted, MOST_BY_DEFAULT)
    grouped = bool(validation and validation.group_by)
    groups, member, sizes = np.unique(keys if grouped else twins, return_inverse=True, return_counts=True)
    if len(groups) < 2 and validation is None:
        return np.zeros(len(keys), np.bool_)
    if len(groups) < 2:
        raise FinetuneError(
            Reason.InvalidSpec,
            "data.validation would hold out all training rows: they are one group",
            "Choose another groupBy, or give a validation file.",
        )
    first = np.full(len(groups), np.iinfo(np.uint64).max)
    np.minimum.at(first, member, keys)
    may_go = np.argsort(first, kind="stable")[:-1]
    before = np.cumsum(sizes[may_go]) - sizes[may_go]
    held = np.zeros(len(groups), np.bool_)
    held[may_go[before < wanted]] = True
    chosen: Flags = held[member]
    return chosen


def draw(keys: Keys, count: int) -> Flags:
    """(rows,): `count` rows of all, by their `key_of` without groups: seed and content decide, so that files or rows in
    another order give the same sample, and a larger sample holds the smaller one."""
    chosen = np.zeros(len(keys), np.bool_)
    chosen[np.argsort(keys, kind="stable")[:count]] = True
    return chosen


def key_of(row: Row, validation: Validation | None, *, seed: int) -> int:
    """Where the row stands in the order by which rows are held out: the same for rows that groupBy keeps together."""
    group = _group(row, validation.group_by if validation else None)
    return _number(f"{seed}\0{group}")


def _group(row: Row, key: str | None) -> str:
    if key is None:
        return json.dumps(without_nulls(row.fields), sort_keys=True, default=str)
    if row.fields.get(key) is None:
        raise row.problem(
            Reason.DataUnreadable,
            f"{key}, by which data.validation.groupBy keeps rows together, is missing",
            "Give every training row the key, or choose another groupBy.",
        )
    return json.dumps(row.fields[key], sort_keys=True, default=str)


def fingerprint(text: str) -> int:
    """The same for texts that differ in case and white space only."""
    return _number(" ".join(text.casefold().split()))


def _number(text: str) -> int:
    """64 bits of a digest: among a million rows, two texts share one by chance in one run of ten million."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
