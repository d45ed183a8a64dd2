"""Earlier tasks of a sequence: their test data, measured again with the model of this one.

tests_of     the rows, before the first step; refused where they are not those that the earlier artifact measured
TASK         before the name of a task, where data sets of all kinds go by name
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.held_out import load_held_out
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.manifest import Manifest
from finetune_trainer.store.opening import open_folder
from finetune_trainer.store.sequence import Sequence, Task

from .records import TUNED, Records, decode, path_of
from .references import checked

TASK = "task/"


@dataclass(frozen=True)
class EarlierTest:
    task: Task
    corpus: Corpus
    digests: dict[str, str]
    """Of its files, as `Datasets.digests`."""

    @property
    def name(self) -> str:
        """As a data set of the run."""
        return f"{TASK}{self.task.name}"


def tests_of(sequence: Sequence | None, *, tokenizer_path: Path, cache: Path) -> tuple[EarlierTest, ...]:
    """Of all tasks. Errors of `load_held_out`, with the task's name."""
    return tuple(_read(task, tokenizer_path, cache) for task in sequence.tasks) if sequence else ()


def check_rows(tests: tuple[EarlierTest, ...], manifest: Manifest, uri: str) -> None:
    """DataChanged, with the numbers, where a task has other rows than the artifact's records: its scores could not be
    compared with those in the manifest."""
    folder = open_folder(uri, prefix=names.PREFIX_OUTPUT)
    for at, test in enumerate(tests):
        path = path_of(test.name)
        if path not in manifest.files and at == len(tests) - 1:
            path = path_of("test")  # its own
        if path in manifest.files and test.corpus.marks is not None:
            _check(test, test.corpus.marks.rows, _measured(folder, path, manifest))


def _read(task: Task, tokenizer_path: Path, cache: Path) -> EarlierTest:
    try:
        found = load_held_out(task.test, tokenizer_path=tokenizer_path, cache=cache)
    except FinetuneError as error:
        raise FinetuneError(
            error.reason,
            f"continueFrom: the test data of the earlier task {task.name} is measured again: {error.message}",
            error.hint,
        ) from error
    return EarlierTest(task, found.corpus, found.digests)


def _measured(folder: Folder, path: str, manifest: Manifest) -> Records:
    models = decode(checked(folder, path, manifest.files[path].digest), where=f"{folder.uri}/{path}").models
    if TUNED not in models:
        raise FinetuneError(Reason.DataUnreadable, f"{folder.uri}/{path} has no records of the tuned model")
    return models[TUNED]


def _check(test: EarlierTest, rows: np.ndarray[tuple[int], np.dtype[np.uint64]], records: Records) -> None:
    now = np.sort(np.array([f"{digest:016x}" for digest in rows.tolist()], np.str_))
    before = np.sort(records.row)
    if np.array_equal(now, before):
        return
    common = len(np.intersect1d(now, before))
    raise FinetuneError(
        Reason.DataChanged,
        f"continueFrom: {test.task.test.uri}, the test data of the earlier task {test.task.name}, has {len(now)} rows "
        f"and had {len(before)}, {common} of them in both",
        "Restore the file, or its old content under this name: an R-matrix is of the same rows throughout.",
    )
