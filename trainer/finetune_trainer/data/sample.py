"""A sample of held-out documents, where a data set has more than evaluation.maxRows asks for."""

from __future__ import annotations

import numpy as np

from finetune_trainer.random_streams import MEASURED

from .corpus import Corpus
from .load import Datasets
from .split import draw


def measured_part(data: Datasets, *, most: int | None, seed: int) -> tuple[Datasets, dict[str, int]]:
    """(with at most so many documents in each held-out data set, how many there were in those that had more). Content
    and seed decide which, so that a larger sample holds the smaller one."""
    if most is None:
        return data, {}
    larger = {name: corpus for name, corpus in data.held_out.items() if len(corpus) > most}
    part = data.with_held_out({name: drawn_part(corpus, most, seed) for name, corpus in larger.items()})
    return part, {name: len(corpus) for name, corpus in larger.items()}


def drawn_part(corpus: Corpus, most: int, seed: int) -> Corpus:
    """At most so many documents, by content and seed."""
    rows = corpus.marks.rows.tolist() if corpus.marks else range(len(corpus))
    keys = np.fromiter((MEASURED.number(seed, str(row)) for row in rows), np.uint64, len(corpus))
    return corpus.take(np.flatnonzero(draw(keys, most)))
