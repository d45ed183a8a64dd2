"""Calibration of base and tuned model on rows of classifications, out of their records.

The figures of the test rows (else of the validation rows) are in status, with the paired difference that the guard
judges; the points of the reliability diagram are in the run's record. The temperature is fitted to the validation rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.calibration import Calibration, CalibrationScores
from finetune_trainer.statistics import calibration
from finetune_trainer.statistics.differences import Difference

from .records import BASE, TUNED, DataSet, Records, groups_of, matched

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibrated:
    told: Calibration
    base: tuple[calibration.Bin, ...]
    tuned: tuple[calibration.Bin, ...]
    """Points of the reliability diagram: at most 15."""


def calibrated(sets: Sequence[DataSet]) -> Calibrated | None:
    """None where neither test nor validation rows are classifications that both models were measured on."""
    judged = {
        each.kind: each for each in sets if {BASE, TUNED} <= set(each.models) and each.kind not in ("slice", "task")
    }
    chosen = next((each for kind in ("test", "validation") if (each := judged.get(kind)) is not None), None)
    if chosen is None:
        return None
    base, tuned = matched(chosen.models[BASE], chosen.models[TUNED])
    change = difference(base, tuned, chosen.labels)
    if change is None:
        return None
    before, after = (_figures(records, chosen.labels) for records in (base, tuned))
    fitted = _scores(judged["validation"].models[TUNED], chosen.labels) if "validation" in judged else None
    told = Calibration.model_validate(
        {
            "name": chosen.name,
            "base": _scored(before),
            "tuned": _scored(after),
            "difference": change.difference,
            "low": change.low,
            "high": change.high,
            "verdict": str(change.verdict),
            "rows": change.rows,
            "temperature": round(calibration.fit_temperature(*fitted), 4) if fitted is not None else None,
        }
    )
    return Calibrated(told, before.bins, after.bins)


def difference(base: Records, tuned: Records, labels: tuple[str, ...], *, comparisons: int = 1) -> Difference | None:
    """Of the calibration errors, on the same rows in the same order. None where they are not classifications."""
    before, after = _scores(base, labels), _scores(tuned, labels)
    if before is None or after is None:
        return None
    return calibration.calibration_difference(
        before[0], after[0], before[1], groups=groups_of(base, tuned), comparisons=comparisons
    )


def _figures(records: Records, labels: tuple[str, ...]) -> calibration.Calibration:
    found = _scores(records, labels)
    assert found is not None
    return calibration.calibration(*found)


def _scores(records: Records, labels: tuple[str, ...]) -> tuple[Floats, NDArray[Any]] | None:
    """(log scores (rows, labels), right labels (rows,)); None of rows without labels, and of no rows."""
    if not labels or records.label is None or records.label_nats is None or not len(records):
        return None
    index = {label: at for at, label in enumerate(labels)}
    return -records.label_nats, np.array([index[label] for label in records.label.tolist()])


def _scored(found: calibration.Calibration) -> CalibrationScores:
    return CalibrationScores(error=found.ece, floor=found.floor, brier=found.brier, nll=found.nll)
