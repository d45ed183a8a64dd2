"""Rows to the rectangles that a network computes.

Packing puts several documents into one rectangle's row, isolated from each other: positions start again with each, and
no target crosses from one to the next. It is a layout and nothing more: a packed step has the documents, the targets
and so the loss of an unpacked one. Rows are about as long as the longest document (or 256 tokens), not as long as the
budget, since the cost of attention grows with a row's length squared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .corpus import Corpus, Numbers

IGNORED = -100
"""No target: what torch's cross-entropy leaves out."""

PADDING = -1
"""The segment of padding."""

SHORT_ROW = 256
"""Rows that are shorter cost more in overhead than they save in attention."""


@dataclass(frozen=True)
class MicroBatch:
    """What one process computes at once; all arrays are (rows, length) but `documents`."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    """From 0 in each document; padding counts as a document of its own."""
    segments: NDArray[np.int64]
    """Which of `documents` the token belongs to; -1 is padding."""
    targets: NDArray[np.int64]
    """Shifted: the next token where that is trained and of the same document, else -100."""
    documents: Numbers
    """(documents,): the row of the corpus for each segment."""
    states: NDArray[Any] | None = None
    """(rows, length, dim): what frozen layers make of the tokens, where the corpus knows; zero at padding."""

    @property
    def padding_ratio(self) -> float:
        return float(np.count_nonzero(self.segments == PADDING)) / self.segments.size

    @property
    def target_count(self) -> int:
        return int(np.count_nonzero(self.targets != IGNORED))


def idle() -> MicroBatch:
    """Nothing to train: for a rank that has no work while others do."""
    shape = (1, 2)
    return MicroBatch(
        np.zeros(shape, np.int64),
        np.arange(2)[None],
        np.full(shape, PADDING, np.int64),
        np.full(shape, IGNORED, np.int64),
        np.zeros(0, np.int64),
    )


def micro_batches(
    corpus: Corpus,
    rows: Numbers,
    *,
    max_tokens: int,
    sequence_length: int,
    packing: bool,
    pad_id: int,
) -> list[MicroBatch]:
    """Each of the corpus' `rows` in one micro-batch, at most `max_tokens` tokens each with their padding.

    A document of more than `max_tokens` tokens is a micro-batch alone. No rows, no micro-batches.
    """
    groups = plan(corpus.lengths[rows], max_tokens=max_tokens, sequence_length=sequence_length, packing=packing)
    return [_lay_out(corpus, [rows[places] for places in group], pad_id=pad_id) for group in groups]


def plan(lengths: Numbers, *, max_tokens: int, sequence_length: int, packing: bool) -> list[list[list[int]]]:
    """Micro-batches of rows of places in `lengths`: where documents of these lengths go. With `packing` they share rows
    where that computes fewer tokens."""
    if not len(lengths):
        return []
    order = [int(i) for i in np.argsort(-lengths, kind="stable")]
    apart = _within([[place] for place in order], lengths, max_tokens=max_tokens)
    if not packing:
        return apart
    room = min(max(int(lengths.max()), min(SHORT_ROW, sequence_length)), max_tokens)
    bins = _first_fit(order, lengths, room=room)
    bins.sort(key=lambda places: -int(lengths[places].sum()))
    packed = _within(bins, lengths, max_tokens=max_tokens)
    return min(packed, apart, key=lambda groups: computed_tokens(groups, lengths))


def computed_tokens(groups: list[list[list[int]]], lengths: Numbers) -> int:
    """Tokens of a plan's rectangles, with their padding."""
    return sum(len(group) * max(int(lengths[places].sum()) for places in group) for group in groups)


def _first_fit(order: list[int], lengths: Numbers, *, room: int) -> list[list[int]]:
    """Documents, longest first, each into the first row with enough space."""
    bins: list[list[int]] = []
    left: list[int] = []
    for place in order:
        size = int(lengths[place])
        index = next((i for i, free in enumerate(left) if size <= free), None)
        if index is None:
            bins.append([place])
            left.append(room - size)
        else:
            bins[index].append(place)
            left[index] -= size
    return bins


def _within(bins: list[list[int]], lengths: Numbers, *, max_tokens: int) -> list[list[list[int]]]:
    """Rows, fullest first, in groups whose rectangle stays within the budget."""
    groups: list[list[list[int]]] = []
    longest = 0
    for places in bins:
        if groups and (len(groups[-1]) + 1) * longest <= max_tokens:
            groups[-1].append(places)
        else:
            groups.append([places])
            longest = int(lengths[places].sum())
    return groups


def _lay_out(corpus: Corpus, bins: list[Numbers], *, pad_id: int) -> MicroBatch:
    """One rectangle with a line for each bin."""
    length = max(int(corpus.lengths[documents].sum()) for documents in bins)
    shape = (len(bins), length)
    tokens = np.full(shape, pad_id, np.int64)
    positions = np.zeros(shape, np.int64)
    segments = np.full(shape, PADDING, np.int64)
    targets = np.full(shape, IGNORED, np.int64)
    kept = corpus.states
    states = None if kept is None else np.zeros((*shape, kept.dim), kept.dtype)
    segment = 0
    for line, documents in enumerate(bins):
        start = 0
        for document in documents:
            row = corpus.row(int(document))
            end = start + len(row.tokens)
            tokens[line, start:end] = row.tokens
            positions[line, start:end] = np.arange(end - start)
            segments[line, start:end] = segment
            if kept is not None and states is not None:
                states[line, start:end] = kept.row(int(document))
            targets[line, start : end - 1] = np.where(row.trained[1:], row.tokens[1:], IGNORED)
            segment += 1
            start = end
        positions[line, start:] = np.arange(length - start)
    return MicroBatch(tokens, positions, segments, targets, np.concatenate(bins), states)
