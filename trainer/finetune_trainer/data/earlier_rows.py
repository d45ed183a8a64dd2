"""regularization.replay.source earlier: a sample of the training rows of earlier tasks.

The tasks get equal parts of the EARLIER_ROWS rows, and what a small task leaves goes to the others. Of a task those
rows are drawn whose keys are the lowest, so content and seed decide: files or rows in another order give the same
sample. Files are read twice, with as many keys in memory as rows can be drawn, however long the files are.

Rows that measure any task, in this job or in an earlier one, are left out by their fingerprints before the draw. Each
file must have the digest that the manifest of its task has.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune_api.data import Classification, Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_api.names import PREFIX_DATA
from finetune_trainer.statistics import ReplayedTask
from finetune_trainer.store.folder import NotFound
from finetune_trainer.store.sources import SourceFile, find_files
from finetune_trainer.store.trained_on import TrainedSource, TrainedTask

from .encode import Limits, encode
from .formats import Document
from .read import ENDINGS, Row
from .split import fingerprint, mark_of, reservoir_key
from .tokenizer import Tokenizer
from .writer import CorpusWriter

Fingerprints = NDArray[np.uint64]

MOST_MEASURED = 1 << 24
"""Fingerprints that an artifact keeps, 8 bytes each."""

_PINNED = re.compile(r"^(hf://datasets/[^/@]+/[^/@]+)@[^/]+")
_HINT = "Restore the file, or set regularization.replay: {source: general, uri: …} to rows that are to be replayed."


@dataclass(frozen=True)
class EarlierRows:
    """What jobs before this one trained on."""

    tasks: tuple[TrainedTask, ...]
    measured: Fingerprints
    """Of the rows that these jobs measured."""

    @property
    def digest(self) -> str:
        told = [task.model_dump_json() for task in self.tasks]
        return hashlib.sha256("\0".join(told).encode() + self.measured.tobytes()).hexdigest()

    def uris(self) -> Iterator[tuple[TrainedTask, str]]:
        """The files of each task, as a policy names them: a data set of the hub without its commit."""
        for task in self.tasks:
            yield from ((task, _PINNED.sub(r"\1", uri)) for uri in task.files)

    def files(self) -> tuple[dict[str, list[SourceFile]], ...]:
        """Of each task, its files by the URI of their source. DataNotFound and the store's errors name the task."""
        return tuple({source.uri: _found(task, source) for source in task.sources} for task in self.tasks)


class Reservoir:
    """The `most` lowest of the keys that are added, each once, in memory for so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[int] = []
        self._kept: set[int] = set()
        self.seen = 0
        """Keys that were added; of equal ones those after the first are not counted while it is among the lowest."""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, key: int) -> None:
        if key in self._kept:
            return
        self.seen += 1
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, -key)
            self._kept.add(key)
        elif key < -self._heap[0]:
            self._kept.discard(-heapq.heapreplace(self._heap, -key))
            self._kept.add(key)

    def lowest(self, count: int) -> set[int]:
        return set(heapq.nsmallest(count, self._kept))


def shares(rows: Sequence[int], most: int) -> list[int]:
    """Of `most` rows, as many of each task, where it has them: `shares([50, 900, 400], 600)` is [50, 275, 275]."""
    quotas = [0] * len(rows)
    for done, at in enumerate(sorted(range(len(rows)), key=rows.__getitem__)):
        quotas[at] = min(rows[at], most // (len(rows) - done))
        most -= quotas[at]
    return quotas


class Measuring:
    """The rows that measure, by their fingerprints: in an array, since a set would take ten times the memory."""

    def __init__(self, *parts: Fingerprints) -> None:
        self._sorted = np.unique(np.concatenate(parts))

    def __contains__(self, found: int) -> bool:
        key = np.uint64(found)
        at = int(np.searchsorted(self._sorted, key))
        return at < len(self._sorted) and bool(self._sorted[at] == key)


class Sample(NamedTuple):
    keys: Reservoir
    left_out: int
    """Rows that may not be replayed, since they measure."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The rows of one task: which are replayed, and as what."""

    task: TrainedTask
    rows: Callable[[], Iterator[Row]]
    """Every training row, from the files: they are read again each time."""
    identity: Callable[[Row], str]
    document: Callable[[Row], Document]
    tokenizer: Tokenizer
    limits: Limits
    digests: Mapping[str, str]
    """Of the files that were read, by URI; of files of this machine from the start."""
    measured: Measuring
    seed: int

    def sample(self, most: int) -> Sample:
        """At most so many. DataChanged for a file that has another content than the task trained on, and errors of
        reading, with the task's name."""
        found, left_out = Reservoir(most), 0
        with _of_task(self.task):
            self._check_unchanged()
            for row in self.rows():
                if self._measures(row):
                    left_out += 1
                else:
                    found.add(reservoir_key(row, seed=self.seed))
            self._check_unchanged()
        return Sample(found, left_out)

    def write(self, writer: CorpusWriter, sample: Sample, quota: int) -> ReplayedTask:
        """So many rows of the sample. NothingToTrain where none of them gives a document."""
        documents = 0
        with _of_task(self.task):
            for outcome in encode(
                map(self.document, self._drawn(sample.keys.lowest(quota))), self.tokenizer, self.limits
            ):
                row = outcome.document.row
                identity = self.identity(row)
                writer.add(outcome, mark=mark_of(row, identity, None), twin=fingerprint(identity))
                documents += len(outcome.pieces)
            if not documents:
                raise FinetuneError(Reason.NothingToTrain, _none_left(sample), _HINT)
        return ReplayedTask(
            name=self.task.name, rows=sample.keys.seen, drawn=quota, documents=documents, left_out=sample.left_out
        )

    def _drawn(self, keys: set[int]) -> Iterator[Row]:
        """The rows with these keys, in the order of the files; of copies the first."""
        for row in self.rows():
            key = reservoir_key(row, seed=self.seed)
            if key in keys and not self._measures(row):
                keys.remove(key)
                yield replace(row, ignored=())

    def _measures(self, row: Row) -> bool:
        return fingerprint(self.identity(row)) in self.measured

    def _check_unchanged(self) -> None:
        for uri, digest in self.task.files.items():
            if self.digests.get(uri, digest) != digest:
                message = f"{uri} is not the file that the task was trained on: its content changed"
                raise FinetuneError(Reason.DataChanged, message, _HINT)


def as_data(task: TrainedTask, *, sequence_length: int) -> Data:
    """The task's rows, as its job read them, but none longer than this job's rows may be."""
    labelled = task.format == "classification"
    return Data(
        train=tuple(TrainSource(uri=source.uri, max_rows=source.max_rows) for source in task.sources),
        format=task.format,
        classification=Classification(labels=task.labels, instruction=task.instruction) if labelled else None,
        sequence_length=min(task.sequence_length, sequence_length),
        overlong="truncate" if task.overlong == "truncate" else "drop",
        ignore_keys=task.ignore_keys,
        append_eos=task.append_eos,
    )


def to_file(measured: Fingerprints) -> bytes:
    """What an artifact keeps of them, see `store.trained_on`: 8 bytes each, sorted."""
    return np.unique(measured).astype("<u8").tobytes()


def from_file(content: bytes) -> Fingerprints:
    """ValueError where it ends in the middle of one."""
    return np.frombuffer(content, "<u8")


def _found(task: TrainedTask, source: TrainedSource) -> list[SourceFile]:
    """The files that the task read, and no others that the source may have by now."""
    with _of_task(task):
        return [_file(uri) for uri in source.files]


def _file(uri: str) -> SourceFile:
    """The one of this name. A folder or a pattern means files of other names, whose digests the manifest does not have.
    DataNotFound where there is none, and the errors of `find_files`."""
    files = find_files(uri, prefix=PREFIX_DATA, endings=ENDINGS)
    found = next((file for file in files if file.uri == uri), None)
    if found is None:
        raise NotFound(f"there is no file {uri}", _HINT)
    return found


def _none_left(sample: Sample) -> str:
    why = "all are longer than data.sequenceLength, or have no text" if sample.keys.seen else "all of them measure"
    return f"none of them is left: {why}"


@contextmanager
def _of_task(task: TrainedTask) -> Iterator[None]:
    """Errors of reading its rows name the task."""
    try:
        yield
    except FinetuneError as error:
        where = f"regularization.replay: the training rows of the earlier task {task.name} are replayed"
        raise FinetuneError(error.reason, f"{where}: {error.message}", error.hint or _HINT) from error
