"""A manifest's `data` to tokenised data sets, once for the content of its files.

The result lies in the cache under a digest of all that it depends on: files, tokenizer, settings, the version of this
code. Later callers, and the other processes of the node, map it into memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from finetune_api.failures import FinetuneError, Reason
from finetune_api.names import PREFIX_DATA
from finetune_api.spec import Data
from finetune_trainer.store.fetch import fetch_file

from .classification import Classification, labels_of
from .corpus import Corpus
from .encode import Limits, encode
from .formats import FORMATS, Format, detect
from .read import Row, read_rows
from .split import fingerprint, hold_out
from .statistics import SplitStatistics, Statistics
from .tokenizer import FILES, Tokenizer

RECIPE = 1
"""Raised when the same files would give other arrays."""

SLICE = "slice:"


@dataclass(frozen=True)
class Datasets:
    train: Corpus
    validation: Corpus | None
    test: Corpus | None
    general: Corpus | None
    slices: dict[str, Corpus]
    statistics: Statistics
    pad_id: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Of classification; else empty."""
        return self.statistics.labels

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of each file, by URI."""
        return self.statistics.digests


def load_datasets(spec: Data, *, tokenizer_path: Path, cache: Path, seed: int) -> Datasets:
    """FinetuneError for everything that is wrong with the files, with file and line."""
    files = {uri: fetch_file(uri, prefix=PREFIX_DATA, cache=cache) for uri in _uris(spec)}
    digests = {uri: _sha256(path, uri) for uri, path in files.items()}
    tokenizer_digest = _digest(*(_sha256(p) for name in FILES if (p := tokenizer_path / name).exists()))
    settings = spec.model_dump_json(exclude={"credentials", "packing"})
    key = _digest(settings, *digests.values(), tokenizer_digest, tokenizers.__version__, str(RECIPE), str(seed))
    folder = cache / "tokenized" / key[:32]
    with _locked(folder):
        if not folder.exists():
            tokenizer = Tokenizer.load(tokenizer_path)
            build = _Build(spec, seed, tokenizer, files)
            _write(folder, lambda into: build.write(into, digests=digests, tokenizer_digest=tokenizer_digest))
    return _read(folder)


@dataclass(frozen=True)
class _Build:
    spec: Data
    seed: int
    tokenizer: Tokenizer
    files: Mapping[str, Path]

    def write(self, folder: Path, *, digests: dict[str, str], tokenizer_digest: str) -> None:
        given = [row for source in self.spec.train for row in self._read(source.uri)]
        form = self._format(given)
        rows = self._split(given)
        splits = {name: self._encode(folder, name, split, form) for name, split in rows.items()}
        known = {fingerprint(form.identity(row)) for row in rows["train"]}
        for name, split in rows.items():
            if name not in ("train", "general"):
                copies = sum(fingerprint(form.identity(row)) in known for row in split)
                splits[name] = splits[name].model_copy(update={"duplicates": copies})
        labels = form.labels if isinstance(form, Classification) else ()
        statistics = Statistics(
            format=form.name, labels=labels, splits=splits, digests=digests, tokenizer=tokenizer_digest
        )
        (folder / "statistics.json").write_text(statistics.model_dump_json(by_alias=True))
        (folder / "pad_id.json").write_text(json.dumps(self.tokenizer.pad))

    def _split(self, given: list[Row]) -> dict[str, list[Row]]:
        """By name; validation rows are held out of the training rows unless they have a file of their own."""
        spec = self.spec
        if spec.validation and spec.validation.uri:
            train, validation = given, self._read(spec.validation.uri)
        else:
            train, validation = hold_out(given, spec.validation, seed=self.seed)
        rows = {"train": train, "validation": validation}
        if spec.test:
            rows["test"] = self._read(spec.test.uri)
        if spec.general:
            rows["general"] = self._read(spec.general.uri)
        rows |= {SLICE + part.name: self._read(part.uri) for part in spec.slices}
        return {name: split for name, split in rows.items() if split}

    def _read(self, uri: str) -> list[Row]:
        return read_rows(self.files[uri], name=uri)

    def _format(self, train: list[Row]) -> Format:
        """As the manifest says, else as the first training row looks."""
        wanted = self.spec.classification
        name: str = self.spec.format
        if name == "auto":
            name = "classification" if wanted else detect(train[0])
        if name != "classification":
            return FORMATS[name](self.tokenizer)
        labels = wanted.labels if wanted and wanted.labels else labels_of(train)
        return Classification.of(self.tokenizer, labels, wanted.instruction if wanted else None)

    def _encode(self, folder: Path, name: str, rows: list[Row], form: Format) -> SplitStatistics:
        if name == "general":  # whatever it is, and if it has labels, they are not the task's
            form = FORMATS[detect(rows[0], labelled=False)](self.tokenizer)
        answers = form.answers if isinstance(form, Classification) else ()
        limits = Limits(self.spec.sequence_length, self.spec.overlong)
        corpus, statistics = encode([form.document(row) for row in rows], self.tokenizer, limits, answers=answers)
        if not len(corpus):
            raise _nothing_left(name, statistics, limits)
        corpus.save(folder / name)
        return statistics


def _nothing_left(name: str, counts: SplitStatistics, limits: Limits) -> FinetuneError:
    if counts.dropped == counts.rows:
        return FinetuneError(
            Reason.SequenceTooLong,
            f"{name}: all {counts.rows} rows are longer than data.sequenceLength {limits.sequence_length}",
            "Raise data.sequenceLength.",
        )
    return FinetuneError(Reason.NothingToTrain, f"{name}: no token of its {counts.rows} rows is trained")


def _uris(spec: Data) -> list[str]:
    """Every file once."""
    uris = [source.uri for source in spec.train] + [part.uri for part in spec.slices]
    uris += [part.uri for part in (spec.validation, spec.test, spec.general) if part and part.uri]
    return list(dict.fromkeys(uris))


def _sha256(path: Path, name: str = "") -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FinetuneError(Reason.DataUnreadable, f"{name or path} cannot be read: {error.strerror}") from error


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of the node at a time: the first one tokenises, the others find its work."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: Path, fill: Callable[[Path], None]) -> None:
    """The folder appears whole or not at all, also where a lock means nothing, as on some network file systems."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(beside)
        os.rename(beside, folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _read(folder: Path) -> Datasets:
    statistics = Statistics.model_validate_json((folder / "statistics.json").read_bytes())
    corpora = {name: Corpus.load(folder / name) for name in statistics.splits}
    return Datasets(
        train=corpora["train"],
        validation=corpora.get("validation"),
        test=corpora.get("test"),
        general=corpora.get("general"),
        slices={name.removeprefix(SLICE): c for name, c in corpora.items() if name.startswith(SLICE)},
        statistics=statistics,
        pad_id=json.loads((folder / "pad_id.json").read_text()),
    )
