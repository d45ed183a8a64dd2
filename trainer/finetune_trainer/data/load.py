"""A manifest's `data` to tokenised data sets, once for the content of its files.

The result lies in the cache under a digest of all that it depends on: files, tokenizer, settings, the version of this
code. Later callers, and the other processes of the node, map it into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from finetune_api.data import Data
from finetune_api.names import PREFIX_DATA
from finetune_trainer.statistics import Statistics
from finetune_trainer.store.sources import SourceFile, find_files

from .augment import Variants
from .build import SLICE, TEXTS, Build, sha256
from .cache import kept
from .corpus import Corpus
from .order import Mixture
from .read import ENDINGS
from .tokenizer import FILES, Tokenizer

RECIPE = 5
"""Raised when the same files would give other arrays."""

_ELSEWHERE: dict[str, Any] = {
    "credentials": True,
    "packing": True,
    "augmentation": True,
    "train": {"__all__": {"weight": True}},
}
"""Settings that the arrays do not depend on."""


@dataclass(frozen=True)
class Datasets:
    train: Corpus
    validation: Corpus | None
    test: Corpus | None
    general: Corpus | None
    slices: dict[str, Corpus]
    mixture: Mixture
    """How often an epoch sees the training rows."""
    variants: Variants | None
    """What augmentation makes of the training rows, if it is asked for."""
    statistics: Statistics
    pad_id: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Of classification; else empty."""
        return self.statistics.labels

    @property
    def digests(self) -> dict[str, str]:
        """Of what was read of each file, by URI: its sha256, or behind `rows:` that of its rows; see `iter_rows`."""
        return self.statistics.digests

    @property
    def trained_tokens_per_epoch(self) -> int:
        starts = self.train.offsets[:-1]
        return round(self.mixture.seen(np.add.reduceat(self.train.trained, starts, dtype=np.int64)))


def load_datasets(spec: Data, *, tokenizer_path: Path, cache: Path, seed: int) -> Datasets:
    """FinetuneError for everything that is wrong with the files, with file and line."""
    files = {uri: find_files(uri, prefix=PREFIX_DATA, endings=ENDINGS) for uri in _uris(spec)}
    found = [file for each in files.values() for file in each]
    local = {file.uri: sha256(file.where, file.uri) for file in found if isinstance(file.where, Path)}
    tokenizer_digest = _digest(*(sha256(p) for name in FILES if (p := tokenizer_path / name).exists()))
    settings = spec.model_dump_json(exclude=_ELSEWHERE)
    content = [_version(file, local) for file in found]
    facts = [tokenizer_digest, tokenizers.__version__, str(RECIPE), str(seed), str(bool(spec.augmentation))]
    key = _digest(settings, *content, *facts)

    def fill(folder: Path) -> None:
        Build(spec, seed, Tokenizer.load(tokenizer_path), files, tokenizer_digest, dict(local)).write(folder)

    with kept(cache / "tokenized" / key[:32], fill) as folder:
        return _read(folder, spec, tokenizer_path=tokenizer_path, seed=seed)


def _uris(spec: Data) -> list[str]:
    """Every source once."""
    uris = [source.uri for source in spec.train] + [part.uri for part in spec.slices]
    uris += [part.uri for part in (spec.validation, spec.test, spec.general) if part and part.uri]
    return list(dict.fromkeys(uris))


def _version(file: SourceFile, local: dict[str, str]) -> str:
    return f"{file.uri} {local.get(file.uri) or file.version}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(folder: Path, spec: Data, *, tokenizer_path: Path, seed: int) -> Datasets:
    statistics = Statistics.model_validate_json((folder / "statistics.json").read_bytes())
    corpora = {name: Corpus.load(folder / name) for name in statistics.splits}
    train = corpora["train"]
    return Datasets(
        train=train,
        validation=corpora.get("validation"),
        test=corpora.get("test"),
        general=corpora.get("general"),
        slices={name.removeprefix(SLICE): c for name, c in corpora.items() if name.startswith(SLICE)},
        mixture=_mixture(spec, statistics),
        variants=_variants(folder, spec, statistics, train, tokenizer_path, seed) if spec.augmentation else None,
        statistics=statistics,
        pad_id=json.loads((folder / "pad_id.json").read_text()),
    )


def _mixture(spec: Data, statistics: Statistics) -> Mixture:
    rows = tuple(source.documents for source in statistics.sources)
    weights: Sequence[float] = [source.weight for source in spec.train]
    if all(weight == 1 for weight in weights):
        return Mixture.even(sum(rows))
    return Mixture(rows, tuple(weights))


def _variants(
    folder: Path, spec: Data, statistics: Statistics, train: Corpus, tokenizer_path: Path, seed: int
) -> Variants:
    return Variants(
        spec=spec,
        seed=seed,
        format=statistics.format,
        labels=statistics.labels,
        tokenizer_path=tokenizer_path,
        texts=np.memmap(folder / TEXTS, np.uint8, "r"),
        places=np.load(folder / "texts.npy", mmap_mode="r"),
        heldout=np.load(folder / "heldout.npy"),
        train=train,
    )
