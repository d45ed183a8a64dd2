"""Which tokens of which documents an analysis looks at the states of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .corpus import Corpus, Numbers, corpus_of
from .pack import PADDING, MicroBatch
from .sample import drawn_part

TOKENS = 256
"""Longest window, in tokens."""
EACH = 64
"""Tokens of a document in a sample: further ones depend on these."""


@dataclass(frozen=True)
class TokenSample:
    """Tokens of documents whose states are compared."""

    corpus: Corpus
    documents: Numbers
    """(tokens,): from 0, one document after another."""
    places: Numbers
    """(documents, longest): where the token at a position is among `documents`; -1 for all others."""

    @classmethod
    def of(cls, corpus: Corpus, *, tokens: int, seed: int, each: int = EACH) -> TokenSample:
        """Tokens that are spread over each document, without its first one. About so many, a few more rather than
        fewer, of as few documents as have them; all where there are fewer. At most `each` of a document."""
        counts = sampled(corpus, each)
        drawn = drawn_part(corpus, max(1, math.ceil(1.1 * tokens / max(1e-9, float(counts.mean())))), seed)
        chosen = [_spread(int(length), each) for length in np.minimum(drawn.lengths, TOKENS)]
        return cls.at(drawn, chosen)

    @classmethod
    def at(cls, corpus: Corpus, positions: Sequence[Numbers]) -> TokenSample:
        """The tokens at these positions of each document, which are below `TOKENS`."""
        short = corpus_of(
            [corpus.row(at).tokens[:TOKENS] for at in range(len(corpus))],
            [corpus.row(at).trained[:TOKENS] for at in range(len(corpus))],
            corpus.bytes,
        )
        places = np.full((len(short), int(short.lengths.max(initial=1))), -1, np.int64)
        owners = np.repeat(np.arange(len(short)), [len(each) for each in positions])
        for document, each in enumerate(positions):
            places[document, each] = np.flatnonzero(owners == document)
        return cls(short, owners.astype(np.int64), places)

    def wanted(self, batch: MicroBatch) -> tuple[NDArray[np.bool_], Numbers]:
        """((rows, length): which tokens of a batch are sampled, (those,): their places among `documents`)."""
        if not len(batch.documents):
            return np.zeros(batch.tokens.shape, np.bool_), np.zeros(0, np.int64)
        positions = np.minimum(batch.positions, self.places.shape[1] - 1)  # padding may be longer
        index = self.places[batch.documents[batch.segments], positions]
        wanted = (batch.segments != PADDING) & (index >= 0)
        return wanted, index[wanted]


def sampled(corpus: Corpus, each: int = EACH) -> Numbers:
    """(documents,): how many tokens of each may be in a sample."""
    return np.asarray(np.clip(np.minimum(corpus.lengths, TOKENS) - 1, 0, each))


def _spread(length: int, each: int) -> Numbers:
    return np.unique(np.linspace(1, length - 1, min(length - 1, each)).astype(np.int64))
