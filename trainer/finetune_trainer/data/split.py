"""Samples of rows, held-out rows out of the training rows, and how to find rows that should not be in two sets."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune_api.data import Validation
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.random_streams import HELD_OUT, NEWEST, RESERVOIR, SAMPLE

from .corpus import Flags
from .read import Row

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


def fold_of(keys: Keys, twins: Keys, held: Flags, *, grouped: bool, index: int, count: int) -> Flags:
    """(rows,): whether the training row is in fold `index` of `count`, by its `key_of` and its `fingerprint`.

    Held-out rows are in none. Folds have about the same size, and whole groups, in the order in which these would be
    held out. All are empty where one would have all rows. Rows that occur in another group too are left out, so that
    nothing is measured that is trained on.
    """
    free = np.flatnonzero(~held)
    own, member, sizes = np.unique((keys if grouped else twins)[free], return_inverse=True, return_counts=True)
    chosen = np.zeros(len(keys), np.bool_)
    if len(own) < 2:
        return chosen
    first = np.full(len(own), np.iinfo(np.uint64).max)
    np.minimum.at(first, member, keys[free])
    order = np.argsort(first, kind="stable")
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    fold = np.empty(len(own), np.int64)
    fold[order] = np.minimum(count - 1, (middle * count / len(free)).astype(np.int64))
    if len(np.unique(fold)) < 2:
        return chosen
    inside = fold[member] == index
    chosen[free[inside]] = ~np.isin(twins[free[inside]], twins[free[~inside]])
    return chosen


def draw(keys: Keys, count: int) -> Flags:
    """(rows,): `count` rows of all, by their `sample_key`: seed and content decide, so that files or rows in
    another order give the same sample, and a larger sample holds the smaller one."""
    chosen = np.zeros(len(keys), np.bool_)
    chosen[np.argsort(keys, kind="stable")[:count]] = True
    return chosen


def key_of(row: Row, validation: Validation | None, *, seed: int) -> int:
    """The row's position in the order by which rows are held out: the same for rows that groupBy keeps together."""
    group = _group(row, validation.group_by if validation else None)
    return HELD_OUT.number(seed, group)


def sample_key(row: Row, *, seed: int, streams: int = NEWEST) -> int:
    """The row's position in the order by which `data.train[].maxRows` draws. It is another order than that of
    `key_of`: the rows with the lowest keys of all would otherwise be those that are held out next."""
    return SAMPLE.number(seed, _group(row, None), generation=streams)


def reservoir_key(row: Row, *, seed: int) -> int:
    """The row's position in the order by which training rows of earlier tasks are drawn: content and seed decide."""
    return RESERVOIR.number(seed, _group(row, None))


def _group(row: Row, key: str | None) -> str:
    if key is None:
        return json.dumps(row.fields, sort_keys=True, default=str)
    if row.fields.get(key) is None:
        raise row.problem(
            Reason.DataUnreadable,
            f"{key}, by which data.validation.groupBy keeps rows together, is missing",
            "Give every training row the key, or choose another groupBy.",
        )
    return json.dumps(row.fields[key], sort_keys=True, default=str)


class Mark(NamedTuple):
    """Which row of the files something was made of, and which rows go with it."""

    row: int
    group: int


def mark_of(row: Row, identity: str, group_by: str | None) -> Mark:
    """`identity`: the format's. A row without the key `group_by` is a group of its own."""
    own = _number(f"{identity}\0{row.fields.get('label')}")
    value = row.fields.get(group_by) if group_by else None
    return Mark(own, own if value is None else _number(f"group\0{json.dumps(value, sort_keys=True, default=str)}"))


def part_of(row: int, number: int) -> int:
    """The digest of a row's window or turn; that of the first is the row's."""
    return row if number == 0 else _number(f"{row}\0{number}")


def fingerprint(text: str) -> int:
    """The same for texts that differ in case and white space only."""
    return _number(" ".join(text.casefold().split()))


def is_replayed(twin: int) -> bool:
    """Whether a document of data.general is replayed, by its fingerprint, where it both measures forgetting and is
    replayed: half of them are, the same ones for any seed and any order of the files."""
    return bool(twin & 1)


def _number(text: str) -> int:
    """64 bits of a digest: among a million rows, two texts share one by chance in one run of ten million."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
