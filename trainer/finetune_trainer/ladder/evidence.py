"""What the committed artifact of a rung shows: its records of the validation rows against those of the best so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune_api.measurements import GuardResult
from finetune_trainer.data.halves import selects
from finetune_trainer.ladder.decision import Decision, compared, decide, mean_of, reaches
from finetune_trainer.ladder.derived import factor_of
from finetune_trainer.report.record import RunRecord, read_record
from finetune_trainer.statistics.differences import Measure
from finetune_trainer.statistics.paired import Paired
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.folder import Folder, NotFound
from finetune_trainer.transfer.records import (
    BASE,
    FEW_SHOT,
    TUNED,
    DataSet,
    Records,
    common,
    decode,
    matched,
    measures,
    paired,
    path_of,
)


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A rung that is done."""

    record: RunRecord
    validation: DataSet
    crossed: DataSet | None = None
    """Of cross-fitting: the training rows, each as the run that did not train on it measured it."""
    folds: int = 0
    """Of cross-fitting."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rung against the best so far, on the rows that decide."""

    measure: Measure
    best_score: float
    score: float
    decision: Decision
    reaches_target: bool
    best_reaches_target: bool


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """The base model with examples in its prompt, which is not trained and cannot be published."""

    examples: int
    found: Finding
    """Against the base model without them."""
    beyond: Decision | None = None
    """The best rung against it."""


def read(folder: Folder, *, uid: str) -> Committed | None:
    """None where the rung of this UID is not committed, at any rate. DataUnreadable where its files are damaged, or
    without validation rows."""
    try:
        if factor_of(read_manifest(folder).run.uid, of=uid) is None:
            return None
        where = path_of("validation")
        return Committed(record=read_record(folder), validation=decode(folder.read(where), where=where))
    except NotFound:
        return None


def read_fold(folder: Folder, *, uid: str) -> DataSet | None:
    """The rows of a fold; none if it is empty. None where its run is not committed."""
    try:
        if read_manifest(folder).run.uid != uid:
            return None
    except NotFound:
        return None
    where = path_of("validation")
    try:
        return decode(folder.read(where), where=where)
    except NotFound:
        return DataSet(name="validation", kind="validation", models={})


def blocked_by(committed: Committed, *, strict: bool) -> str:
    """Which guards the rung breaks, in words. strict: one that is inconclusive counts too."""
    guards = committed.record.evaluation.guards
    return "; ".join(f"guards.{each.told()}" for each in guards if _breaks(each, strict=strict))


def find(
    committed: Committed, best: Committed | None, *, rungs: int, min_gain: float, target: float | None, strict: bool
) -> Finding:
    """best: None for the base model. strict: a guard that is inconclusive blocks too."""
    rows, folds = _deciding(committed), committed.folds
    before = _deciding(best, like=committed).models[TUNED] if best else rows.models[BASE]
    pair = _pair(*matched(before, rows.models[TUNED]), halved=committed.crossed is None)
    blocked = blocked_by(committed, strict=strict)
    return _finding(pair, min_gain=min_gain, target=target, rungs=rungs, folds=folds, blocked=blocked)


def few_shot(
    first: Committed, best: Committed | None, *, examples: int, rungs: int, min_gain: float, target: float | None
) -> FewShot | None:
    """first: the rung in whose runs it was measured; None where it was not. best: the rung that was taken."""
    rows, folds = _deciding(first), first.folds
    if FEW_SHOT not in rows.models:
        return None
    prompted = rows.models[FEW_SHOT]
    pair = _pair(*common(rows.models[BASE], prompted), halved=first.crossed is None)
    found = _finding(pair, min_gain=min_gain, target=target, rungs=rungs, folds=folds)
    if best is None:
        return FewShot(examples=examples, found=found)
    beyond = _pair(*common(prompted, _deciding(best, like=first).models[TUNED]), halved=first.crossed is None)
    change = compared(beyond, rungs=rungs, folds=folds)
    return FewShot(examples=examples, found=found, beyond=decide(change, min_gain=min_gain, folds=folds))


def _finding(
    pair: Paired, *, rungs: int, min_gain: float, target: float | None, folds: int, blocked: str = ""
) -> Finding:
    change = compared(pair, rungs=rungs, folds=folds)
    return Finding(
        measure=pair.measure,
        best_score=mean_of(pair.base, pair.base_weights),
        score=mean_of(pair.tuned, pair.tuned_weights),
        decision=decide(change, min_gain=min_gain, blocked=blocked, folds=folds),
        reaches_target=reaches(pair, target, folds=folds),
        best_reaches_target=reaches(_swapped(pair), target, folds=folds),
    )


def _pair(first: Records, second: Records, *, halved: bool) -> Paired:
    """By the main metric. halved: on the select half."""
    if halved:
        half = selects(np.array([int(group, 16) for group in second.group.tolist()], np.uint64))
        first, second = (each.take(np.flatnonzero(half)) for each in (first, second))
    return paired(first, second, measures(first, second, kind="validation")[0])


def _deciding(rung: Committed, *, like: Committed | None = None) -> DataSet:
    """The rows that decide about it, or those that it has in common with another rung: one that breaks a guard is not
    cross-fitted."""
    crossed = rung.crossed if like is None or like.crossed is not None else None
    return rung.validation if crossed is None else crossed


def _swapped(pair: Paired) -> Paired:
    return Paired(
        measure=pair.measure, base=pair.tuned, tuned=pair.base, base_weights=pair.tuned_weights,
        tuned_weights=pair.base_weights, groups=pair.groups,
    )  # fmt: skip


def _breaks(guard: GuardResult, *, strict: bool) -> bool:
    return guard.verdict == "violated" or (strict and guard.verdict == "inconclusive")
