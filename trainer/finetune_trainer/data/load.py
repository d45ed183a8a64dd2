"""A manifest's `data` to tokenised data sets, once for the content of its files.

The result is in the cache under a digest of all that it depends on: files, tokenizer, settings, the version of this
code. Later callers, and the other processes of the node, map it into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from finetune_api.data import Data
from finetune_api.names import PREFIX_DATA
from finetune_trainer.random_streams import NEWEST
from finetune_trainer.statistics import Statistics
from finetune_trainer.store.sources import SourceFile, find_files

from .augment import Variants
from .build import SLICE, TEXTS, Build, sha256
from .cache import kept
from .corpus import Corpus
from .earlier_rows import EarlierRows, Fingerprints
from .order import Mixture, tempered
from .read import ENDINGS
from .tokenizer import Tokenizer, tokenizer_files

RECIPE = 11
"""Raised when the same files would give other arrays."""

_ELSEWHERE: dict[str, Any] = {
    "credentials": True,
    "packing": True,
    "mixing": True,
    "augmentation": True,
    "train": {"__all__": {"weight": True, "name": True}},
}
"""Settings that the arrays do not depend on."""


@dataclass(frozen=True)
class Datasets:
    train: Corpus
    validation: Corpus | None
    test: Corpus | None
    general: Corpus | None
    replay: Corpus | None
    """General text to replay; no document of it is in a data set that is measured."""
    slices: dict[str, Corpus]
    mixture: Mixture
    """How often an epoch sees the training rows."""
    variants: Variants | None
    """What augmentation makes of the training rows, if it is asked for."""
    statistics: Statistics
    pad_id: int
    origins: dict[int, str] = field(default_factory=dict)
    """Name of the source by the digest of a held-out row, of sources that have one."""
    fold: Corpus | None = None
    """Training rows that are only measured, where a fold is asked for."""
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """URIs of the files by the URI in the manifest."""
    measured: Fingerprints = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Of all rows that are only measured."""

    @property
    def held_out(self) -> dict[str, Corpus]:
        """By name: validation, test, general, slice:books, and fold where one is asked for."""
        given = {"validation": self.validation, "test": self.test, "general": self.general, "fold": self.fold}
        given |= {f"{SLICE}{name}": corpus for name, corpus in self.slices.items()}
        return {name: corpus for name, corpus in given.items() if corpus is not None}

    def with_held_out(self, corpora: Mapping[str, Corpus]) -> Datasets:
        """With others, by the names of `held_out`."""
        return replace(
            self,
            validation=corpora.get("validation", self.validation),
            test=corpora.get("test", self.test),
            general=corpora.get("general", self.general),
            slices={name: corpora.get(f"{SLICE}{name}", corpus) for name, corpus in self.slices.items()},
            fold=corpora.get("fold", self.fold),
        )

    @property
    def replay_parts(self) -> tuple[int, ...]:
        """Documents of `replay` of each earlier task, one task after another; () if they are general text."""
        return tuple(task.documents for task in self.statistics.replayed)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of classification; else empty."""
        return self.statistics.labels

    @property
    def digests(self) -> dict[str, str]:
        """Of what was read of each file, by URI: its sha256, or after `rows:` that of its rows; see `iter_rows`."""
        return self.statistics.digests

    @property
    def trained_tokens_per_epoch(self) -> int:
        starts = self.train.offsets[:-1]
        return round(self.mixture.seen(np.add.reduceat(self.train.trained, starts, dtype=np.int64)))


def load_datasets(
    spec: Data,
    *,
    tokenizer_path: Path,
    cache: Path,
    seed: int,
    streams: int = NEWEST,
    group_by: str | None = None,
    replay: str | None = None,
    earlier: EarlierRows | None = None,
    fold: tuple[int, int] | None = None,
) -> Datasets:
    """FinetuneError for everything that is wrong with the files, with file and line. `streams`: the generation of
    random streams that the run began with. `group_by`: key of rows that are not independent; see `Marks`.
    `replay`: URI of general text to replay, which may be that of data.general; `earlier`: rows of earlier tasks, to be
    replayed instead. `fold`: see `Build.fold`."""
    group_by = group_by or (spec.validation.group_by if spec.validation else None)
    files = {uri: find_files(uri, prefix=PREFIX_DATA, endings=ENDINGS) for uri in _uris(spec, replay)}
    earlier_files = earlier.files() if earlier else ()
    found = [file for task in (files, *earlier_files) for each in task.values() for file in each]
    local = {file.uri: sha256(file.where, file.uri) for file in found if isinstance(file.where, Path)}
    tokenizer_digest = _digest(*(sha256(path) for path in tokenizer_files(tokenizer_path)))
    settings = spec.model_dump_json(exclude=_ELSEWHERE)
    content = [_version(file, local) for file in found]
    facts = [tokenizer_digest, tokenizers.__version__, str(RECIPE), str(seed), str(bool(spec.augmentation))]
    facts += [f"streams {streams}"] if streams > 1 else []
    facts += [f"groups {group_by}"] if group_by else []
    facts += [f"replay {replay}"] if replay else []
    facts += [f"earlier {earlier.digest}"] if earlier else []
    facts += [f"fold {fold[0]} of {fold[1]}"] if fold else []
    key = _digest(settings, *content, *facts)

    def fill(folder: Path) -> None:
        tokenizer = Tokenizer.load(tokenizer_path)
        build = Build(spec, seed, tokenizer, files, tokenizer_digest, dict(local), streams=streams, group_by=group_by)
        build = replace(build, replay=replay, fold=fold)
        replace(build, earlier=earlier, earlier_files=earlier_files, local=local).write(folder)

    with kept(cache / "tokenized" / key[:32], fill) as folder:
        data = _read(folder, spec, tokenizer_path=tokenizer_path, seed=seed)
        names = {uri: tuple(file.uri for file in each) for uri, each in files.items()}
        return replace(data, mixture=replace(data.mixture, streams=streams), files=names)


def _uris(spec: Data, replay: str | None) -> list[str]:
    """Every source once."""
    uris = [source.uri for source in spec.train] + [part.uri for part in spec.slices]
    uris += [part.uri for part in (spec.validation, spec.test, spec.general) if part and part.uri]
    uris += [replay] if replay else []
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
        replay=corpora.get("replay"),
        slices={name.removeprefix(SLICE): c for name, c in corpora.items() if name.startswith(SLICE)},
        mixture=_mixture(spec, statistics),
        variants=_variants(folder, spec, statistics, train, tokenizer_path, seed) if spec.augmentation else None,
        statistics=statistics,
        pad_id=json.loads((folder / "pad_id.json").read_text()),
        origins=_origins(spec, statistics, corpora.get("validation")) if "fold" not in corpora else {},
        fold=corpora.get("fold"),
        measured=np.load(folder / "measured.npy"),
    )


def _origins(spec: Data, statistics: Statistics, validation: Corpus | None) -> dict[int, str]:
    """Held-out rows are in the order of the sources."""
    if validation is None or validation.marks is None or not any(source.name for source in spec.train):
        return {}
    counts = [source.held_out for source in statistics.sources]
    owners = np.repeat([source.name or "" for source in spec.train], counts).tolist()
    named = zip(validation.marks.rows.tolist(), owners, strict=True)
    return {digest: name for digest, name in named if name}


def _mixture(spec: Data, statistics: Statistics) -> Mixture:
    rows = tuple(source.documents for source in statistics.sources)
    weights: Sequence[float] = [source.weight for source in spec.train]
    if spec.mixing is not None:
        weights = tempered(rows, weights, spec.mixing.temperature)
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
