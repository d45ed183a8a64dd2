"""A ladder whose rungs reach accuracies that a test chooses: the store, the records and the decisions are real."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api import manifest
from finetune_api.failures import Reason, TerminationMessage, class_of
from finetune_api.job import FineTuneJob
from finetune_api.plan import JobIdentity, Publishes, Trial
from finetune_api.status import Artifact
from finetune_trainer.report.record import RunRecord
from finetune_trainer.store.artifact import commit_artifact
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.opening import open_folder
from finetune_trainer.transfer.records import BASE, FEW_SHOT, TUNED, DataSet, Records, encode, of_rows
from tests.support.manifests import BASE as MANIFEST
from tests.support.manifests import changed
from tests.support.small_report import record

ROWS = 2000
NAMES = [f"{int(value):016x}" for value in np.random.default_rng(1).integers(0, 2**63, ROWS)]


def job(folder: Path, **changes: Any) -> FineTuneJob:
    asked = {
        "spec.method": {"type": "auto"},
        "spec.data.train": [{"uri": (folder / "train.jsonl").as_uri()}],
        "spec.data.format": "classification",
        "spec.data.test": {"uri": "s3://corp/test.jsonl"},
        "spec.output.uri": (folder / "out").as_uri(),
        "spec.ladder": {"rungs": ["probe", "lora", "full"]},
        **{f"spec.{name}": value for name, value in changes.items()},
    }
    raw = changed(MANIFEST, asked)
    assert manifest.validate(raw) == ()
    made = FineTuneJob.model_validate_json(json.dumps(raw))
    return made.model_copy(update={"metadata": made.metadata.model_copy(update={"uid": "u1"})})


def measured(right: float) -> Records:
    """The first rows are right."""
    score = (np.arange(ROWS) < right * ROWS).astype(np.float64)
    shuffled = score[np.random.default_rng(2).permutation(ROWS)]
    ones = np.ones(ROWS)
    return of_rows(row=NAMES, nats=ones, sizes=ones, tokens=ones, score=shuffled, label=["a"] * ROWS)


@dataclass
class Machine:
    """Runs rungs that reach these accuracies; the base model has 0.5."""

    accuracy: dict[str, float]
    fails: dict[str, Reason] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    published: list[Publishes] = field(default_factory=list)
    losses: dict[float, float] = field(default_factory=dict)
    """Of the learning rates of a race, by their multiple."""
    legs: list[tuple[float, float]] = field(default_factory=list)
    diverge_late: tuple[float, ...] = ()
    """Multiples of rates that diverge after the last mark."""
    folds: list[tuple[str, int]] = field(default_factory=list)
    """Of cross-fitting: method and index of those that were run."""
    fails_in_fold: dict[tuple[str, int], Reason] = field(default_factory=dict)
    empty_folds: bool = False
    factors: list[float] = field(default_factory=list)
    """Of the published runs."""
    prompted: float | None = None
    """Accuracy of the base model with examples in its prompt, in runs that measure it."""
    shown: list[tuple[str, int]] = field(default_factory=list)
    """Methods and numbers of examples of these runs."""
    wrap: Callable[[Folder], Any] = lambda folder: folder

    def run_one(
        self, rung_job: FineTuneJob, *, rung: str | None = None, publishes: Publishes | None = None,
        trial: Trial | None = None, tick: Callable[[], None] = lambda: None,
    ) -> tuple[FineTuneJob, TerminationMessage]:  # fmt: skip
        tick()
        method = rung_job.spec.method.type
        if (reason := self.fails.get(method)) is not None:
            return rung_job, TerminationMessage(failure_class=class_of(reason), reason=reason, message="failed")
        if trial is not None and trial.fold is not None:
            return rung_job, self._fold(rung_job, trial)
        if trial is not None and trial.until is not None:
            return rung_job, self._paused(rung_job, trial)
        if publishes is not None:
            self.published.append(publishes)
            self.factors.append(trial.factor if trial else 1.0)
        elif trial is not None and trial.factor in self.diverge_late:
            self.legs.append((trial.factor, 1.0))
            return rung_job, _diverged()
        else:
            assert rung == method
            self.trained.append(method)
        return rung_job, TerminationMessage(artifact=self._commit(rung_job, examples=trial.few_shot if trial else 0))

    def _paused(self, rung_job: FineTuneJob, trial: Trial) -> TerminationMessage:
        """A leg of a race: its loss is the factor's, and infinite ones diverge."""
        self.legs.append((trial.factor, trial.until or 1.0))
        if math.isinf(loss := self.losses[trial.factor]):
            return _diverged()
        folder = open_folder(rung_job.spec.output.uri, prefix="OUTPUT_")
        CheckpointStore(self.wrap(folder), identity(rung_job)).note(trial.note, {"loss": loss})
        return TerminationMessage(reason=Reason.Succeeded)

    def _fold(self, rung_job: FineTuneJob, trial: Trial) -> TerminationMessage:
        """Every so many rows are its own."""
        fold = trial.fold
        assert fold is not None
        which = (rung_job.spec.method.type, fold.index)
        if (reason := self.fails_in_fold.get(which)) is not None:
            return TerminationMessage(failure_class=class_of(reason), reason=reason, message="failed")
        self.folds.append(which)
        rows = np.arange(ROWS)[fold.index :: fold.of] if not self.empty_folds else np.arange(0)
        return TerminationMessage(artifact=self._commit(rung_job, rows, examples=trial.few_shot))

    def _commit(self, rung_job: FineTuneJob, rows: NDArray[np.int64] | None = None, *, examples: int = 0) -> Artifact:
        kept = np.arange(ROWS) if rows is None else rows
        right = {BASE: 0.5, TUNED: self.accuracy[rung_job.spec.method.type]}
        if examples:
            self.shown.append((rung_job.spec.method.type, examples))
            right |= {} if self.prompted is None else {FEW_SHOT: self.prompted}
        models = {name: measured(share).take(kept) for name, share in right.items()} if len(kept) else {}
        data = DataSet(name="validation", kind="validation", models=models, labels=("a", "b"))
        told: RunRecord = record().model_copy(update={"job": identity(rung_job)})
        files: dict[str, bytes | Path] = {"run.json": told.encode().encode()}
        if models:
            files[data.path] = encode(data)
        folder = open_folder(rung_job.spec.output.uri, prefix="OUTPUT_")
        return commit_artifact(folder, files, run=identity(rung_job), kind="adapter", overwrite=False)


def _diverged() -> TerminationMessage:
    reason = Reason.LossNonFinite
    return TerminationMessage(failure_class=class_of(reason), reason=reason, message="diverged")


def identity(rung_job: FineTuneJob) -> JobIdentity:
    return JobIdentity(namespace="default", name=rung_job.metadata.name, uid=rung_job.metadata.uid)


class Killed(BaseException):
    """Of this program, at a write."""


class Deadly:
    """A folder whose n-th write, of all folders together, is the last thing that happens."""

    def __init__(self, folder: Folder, left: list[int]) -> None:
        self.folder, self.left = folder, left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.folder, name)

    def put(self, path: str, data: bytes | Path) -> None:
        self.folder.put(path, data)
        self.left[0] -= 1
        if self.left[0] == 0:
            raise Killed
