"""How far tuning moved the states of each layer: base and tuned model on the same tokens.

States are scaled to a root mean square of 1, as the next block sees them: a few huge numbers hide all others in `raw`.
The null pairs each document with another one, so it has what all documents of a data set share: 1 means that
nothing changed, and the null that no relation is left. `error` is by leaving out groups of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.random_streams import PERMUTED
from finetune_trainer.statistics.correlation import Bases, Canonical, null
from finetune_trainer.statistics.intervals import Floats
from finetune_trainer.statistics.similarity import FEWEST, Paired, coordinates, permuted, with_error

GROUPS = 10
PERMUTATIONS = 10
MARGIN = 0.01
"""1 - CKA from which on a layer counts as changed."""

States = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LayerSimilarity:
    layer: int
    """0 the embeddings, n the output of the n-th block."""
    cka: float
    error: float
    raw: float
    """CKA of the states as they are."""
    null: float
    """CKA with permuted documents, mean."""
    canonical: Canonical | None
    canonical_null: Canonical | None
    """Both None where there are too few tokens for canonical correlations."""

    @property
    def changed(self) -> bool:
        """By more than the margin, and by more than two standard errors."""
        return 1 - self.cka > max(MARGIN, 2 * self.error)


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Of one data set."""

    name: str
    documents: int
    tokens: int
    layers: tuple[LayerSimilarity, ...]
    needed: int
    """Tokens for canonical correlations of every layer."""

    @property
    def changed_from(self) -> int | None:
        """The lowest layer that changed."""
        return next((each.layer for each in self.layers if each.changed), None)

    @property
    def least(self) -> LayerSimilarity:
        return min(self.layers, key=lambda each: each.cka)


def lacking(tokens: int, documents: int) -> str:
    """Why a data set cannot be compared; empty where it can."""
    if tokens < FEWEST:
        return f"{tokens:,} tokens, and an unbiased CKA needs {FEWEST:,}"
    return f"{documents} documents, and an error needs 3" if documents < 3 else ""


def similarity(
    name: str, before: States, after: States, documents: NDArray[np.int64], *, layers: Sequence[int], seed: int
) -> Similarity:
    """before, after: (layers, tokens, dim) of base and tuned model; documents: (tokens,) from 0, in one piece each.
    ValueError where there are too few tokens."""
    count = int(documents.max()) + 1
    if why := lacking(len(documents), count):
        raise ValueError(why)
    groups = [np.flatnonzero(np.isin(documents, part)) for part in np.array_split(np.arange(count), min(GROUPS, count))]
    orders = [_order(documents, number, seed) for number in range(PERMUTATIONS)]
    found, needed = [], 0
    for layer, x, y in zip(layers, before, after, strict=True):
        basis = Bases.of(_scaled(x), _scaled(y))
        needed = max(needed, basis.needed)
        value, error = with_error(_parts(_scaled(x), _scaled(y), groups))
        found.append(
            LayerSimilarity(
                layer=layer,
                cka=value,
                error=error,
                raw=with_error(_parts(x.astype(np.float64), y.astype(np.float64), groups))[0],
                null=_null(_scaled(x), _scaled(y), documents, seed),
                canonical=basis.correlations() if basis.enough else None,
                canonical_null=null(basis, orders) if basis.enough else None,
            )
        )
    return Similarity(name=name, documents=count, tokens=len(documents), layers=tuple(found), needed=needed)


def _scaled(states: States) -> Floats:
    exact = states.astype(np.float64)
    return np.asarray(exact / np.sqrt(np.maximum((exact**2).mean(axis=1, keepdims=True), 1e-24)))


def _parts(x: Floats, y: Floats, groups: Sequence[NDArray[np.int64]]) -> list[Paired]:
    x, y = coordinates(x, x.mean(axis=0)), coordinates(y, y.mean(axis=0))
    return [Paired.of(x[rows], y[rows]) for rows in groups]


def _null(x: Floats, y: Floats, documents: NDArray[np.int64], seed: int) -> float:
    """On the first tokens only: the kernels take memory by their square."""
    few = documents <= documents[FEWEST - 1]
    orders = [_order(documents[few], number, seed) for number in range(PERMUTATIONS)]
    return float(np.mean(permuted(x[few], y[few], orders)))


def _order(documents: NDArray[np.int64], number: int, seed: int) -> NDArray[np.int64]:
    """(tokens,): all tokens, document by document, the documents in another order."""
    count = int(documents.max()) + 1
    place = np.argsort(np.argsort(PERMUTED.raw(count, seed, number)))
    return np.argsort(place[documents], kind="stable")
