"""The held-out rows of each source of data.train that has a name, as a slice of that name.

They are a part of the validation rows, which both models were measured on, so they cost nothing. Where half of the
validation rows chose the adapter's scale, those are in none of the slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from .evaluate import Measured
from .evidence import Subject
from .scale import Half


def with_sources(subjects: tuple[Subject, ...], origins: Mapping[int, str]) -> tuple[Subject, ...]:
    """`origins`: name of the source by the digest of a row."""
    more = [part for subject in subjects if subject.kind == "validation" for part in _by_source(subject, origins)]
    return (*subjects, *more)


class _Part(Half):
    """Also of a classifier, whose nats are of labels and not of text: for each row, and by no bytes."""

    def of(self, measured: Measured) -> Measured:
        found = super().of(measured)
        if measured.scores.bits_per_byte is not None or found.labels is None:
            return found
        told = {"loss": float(found.nats.mean()), "bits_per_byte": None, "tokens": len(found.nats)}
        return replace(found, scores=found.scores.model_copy(update=told))


def _by_source(subject: Subject, origins: Mapping[int, str]) -> Iterator[Subject]:
    marks, base = subject.corpus.marks, subject.base
    if marks is None or not origins or not isinstance(base, Measured):
        return
    names = np.array([origins.get(digest, "") for digest in marks.rows.tolist()])
    for name in dict.fromkeys(origins.values()):
        rows = np.flatnonzero(names == name)
        if not len(rows):
            continue
        half = _Part(subject.corpus.take(rows), rows)
        whole = replace(subject, name=name, kind="slice", tried_on=None, tried={}, apart=None)
        yield half.subject(whole, None if subject.tuned is None else half.of(subject.tuned))
