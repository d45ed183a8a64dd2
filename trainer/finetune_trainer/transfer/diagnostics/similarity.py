"""How far tuning moved the states of each layer: base and tuned model on the same tokens.

States are scaled to a root mean square of 1, as the next block sees them: a few huge numbers hide all others in `raw`.
The null pairs each document with another one, so it has what all documents of a data set share: 1 means that
nothing changed, and the null that no relation is left. `error` is by leaving out groups of documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.token_sample import EACH, sampled
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


def held_out(corpora: Mapping[str, Corpus | None]) -> dict[str, Corpus]:
    """What is compared: the test rows, or without these the validation rows; and general text."""
    task = "test" if corpora.get("test") is not None else "validation"
    found = {name: corpora.get(name) for name in (task, "general")}
    return {name: corpus for name, corpus in found.items() if corpus is not None}


def check_comparable(corpora: Mapping[str, Corpus | None]) -> None:
    """InvalidSpec where no data set has enough tokens."""
    reasons = {name: lacking(int(sampled(each).sum()), len(each)) for name, each in held_out(corpora).items()}
    if all(reasons.values()):
        told = "; ".join(f"{name} has {why}" for name, why in reasons.items()) or "no rows are held out"
        raise FinetuneError(
            Reason.InvalidSpec,
            f"diagnostics.similarity has no rows to compare the models on: {told}",
            f"Set data.test or data.general to rows with at least {FEWEST:,} tokens, of which {EACH} of each document "
            "count, or remove diagnostics.similarity.",
        )


def lacking(tokens: int, documents: int) -> str:
    """Why a data set cannot be compared; empty where it can."""
    if tokens < FEWEST:
        return f"{tokens:,} tokens, and an unbiased CKA needs {FEWEST:,}"
    return f"{documents} documents, and an error needs 3" if documents < 3 else ""


def similarity(
    name: str,
    before: Iterable[States],
    after: Iterable[States],
    documents: NDArray[np.int64],
    *,
    layers: Sequence[int],
    seed: int,
    canonical: bool = True,
) -> Similarity:
    """before, after: (tokens, dim) of each layer, of base and tuned model; documents: (tokens,) from 0, in one piece
    each. `canonical`: also by canonical correlations, which takes a decomposition of each side. ValueError where there
    are too few tokens."""
    count = int(documents.max()) + 1
    if why := lacking(len(documents), count):
        raise ValueError(why)
    groups = [np.flatnonzero(np.isin(documents, part)) for part in np.array_split(np.arange(count), min(GROUPS, count))]
    found, needed = [], 0
    for layer, x, y in zip(layers, before, after, strict=True):
        value, error = with_error(_parts(_scaled(x), _scaled(y), groups))
        correlations = _canonical(x, y, documents, seed) if canonical else None
        needed = max(needed, correlations.needed if correlations else 0)
        found.append(
            LayerSimilarity(
                layer=layer,
                cka=value,
                error=error,
                raw=with_error(_parts(x.astype(np.float64), y.astype(np.float64), groups))[0],
                null=_null(_scaled(x), _scaled(y), documents, seed),
                canonical=correlations.found if correlations else None,
                canonical_null=correlations.null if correlations else None,
            )
        )
    return Similarity(name=name, documents=count, tokens=len(documents), layers=tuple(found), needed=needed)


@dataclass(frozen=True, kw_only=True)
class _Canonical:
    needed: int
    found: Canonical | None = None
    null: Canonical | None = None


def _canonical(x: States, y: States, documents: NDArray[np.int64], seed: int) -> _Canonical:
    basis = Bases.of(_scaled(x), _scaled(y))
    if not basis.enough:
        return _Canonical(needed=basis.needed)
    orders = [_order(documents, number, seed) for number in range(PERMUTATIONS)]
    return _Canonical(needed=basis.needed, found=basis.correlations(), null=null(basis, orders))


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
