"""Two models that were measured on the same rows, from their records: every difference with interval and verdict.

Data sets are matched by name, rows by digest. Intervals of slices are adjusted for the number of slices, and slices on
which the second model is worse are flagged (negative transfer). A data set of classifications is compared by its
calibration too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.failures import FinetuneError, Reason
from finetune_api.status import DataKind
from finetune_trainer.statistics.differences import Difference
from finetune_trainer.statistics.paired import Paired, difference
from finetune_trainer.statistics.transfer import Transfer, negative_transfer

from .calibrated import difference as calibration_difference
from .records import JUDGED, TUNED, DataSet, Records, matched, measures, overlap, paired


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: the files of an artifact, and which of its models."""

    uri: str
    data: Mapping[tuple[DataKind, str], DataSet]
    model: str = TUNED

    @property
    def measured(self) -> frozenset[tuple[DataKind, str]]:
        return frozenset(key for key, data in self.data.items() if self.model in data.models)

    def records(self, key: tuple[DataKind, str]) -> Records:
        return self.data[key].models[self.model]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A data set by one measure; the main measure of each data set comes first."""

    name: str
    kind: DataKind
    difference: Difference
    transfer: Transfer | None = None
    """Of a slice by its main measure: whether the first model is better there, among all slices."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    lines: tuple[Line, ...]
    left_out: tuple[str, ...]
    """Data sets that only one side measured, and which."""


def compare(first: Side, second: Side, *, only: frozenset[str] = frozenset()) -> Comparison:
    """second minus first. only: names of data sets, all without. DataNotFound where nothing is common to both;
    DataChanged, with the numbers, where a common data set is of different rows."""
    common = [key for key in _sorted(first.measured & second.measured) if not only or key[1] in only]
    lacking = only - {name for _, name in common}
    if not common or lacking:
        raise _nothing_common(first, second, lacking)
    differing = [text for key in common if (text := _differing(key, first, second))]
    if differing:
        raise FinetuneError(
            Reason.DataChanged,
            "not measured on the same rows: " + "; ".join(differing),
            "Measure both models on the same data with the same evaluation.maxRows, or name the data sets that are "
            "the same with --data.",
        )
    slices = [key for key in common if key[0] == "slice"]
    mains = {(key[1], "first"): _main(key, first, second) for key in slices}
    transfers: dict[tuple[DataKind, str], Transfer] = {("slice", each.slice): each for each in negative_transfer(mains)}
    return Comparison(
        lines=tuple(line for key in common for line in _lines(key, first, second, len(slices), transfers.get(key))),
        left_out=tuple(
            f"{_shown(key)}: measured in {'the first' if key in first.measured else 'the second'} alone"
            for key in _sorted(first.measured ^ second.measured)
            if not only
        ),
    )


def _main(key: tuple[DataKind, str], first: Side, second: Side) -> Paired:
    one, other = matched(first.records(key), second.records(key))
    return paired(one, other, measures(one, other, kind=key[0])[0])


def _lines(key: tuple[DataKind, str], first: Side, second: Side, slices: int, transfer: Transfer | None) -> list[Line]:
    kind, name = key
    comparisons = slices if kind == "slice" else 1
    one, other = matched(first.records(key), second.records(key))
    found = [
        difference(paired(one, other, measure), comparisons=comparisons) for measure in measures(one, other, kind=kind)
    ]
    if (calibrated := _calibration(key, first, second, one, other, comparisons)) is not None:
        found.append(calibrated)
    main, *others = found
    lines = [Line(name=name, kind=kind, difference=main, transfer=transfer)]
    return lines + [Line(name=name, kind=kind, difference=each) for each in others]


def _calibration(
    key: tuple[DataKind, str], first: Side, second: Side, one: Records, other: Records, comparisons: int
) -> Difference | None:
    labels = first.data[key].labels
    return (
        calibration_difference(one, other, labels, comparisons=comparisons)
        if labels == second.data[key].labels
        else None
    )


def _differing(key: tuple[DataKind, str], first: Side, second: Side) -> str:
    found = overlap(first.records(key), second.records(key))
    if found.same:
        return ""
    rows = f"{found.first} rows in the first and {found.second} in the second"
    return f"{_shown(key)} has {rows}, {found.common} of them in both"


def _nothing_common(first: Side, second: Side, lacking: frozenset[str]) -> FinetuneError:
    def of(side: Side) -> str:
        return ", ".join(_shown(key) for key in _sorted(side.measured)) or "nothing"

    what = f"no {' and no '.join(sorted(lacking))} to compare" if lacking else "no data set to compare"
    return FinetuneError(
        Reason.DataNotFound,
        f"{what}: {first.uri} has records of {of(first)} (model {first.model}), "
        f"{second.uri} of {of(second)} (model {second.model})",
        "Compare artifacts that were measured on the same data sets.",
    )


def _sorted(keys: frozenset[tuple[DataKind, str]]) -> list[tuple[DataKind, str]]:
    return sorted(keys, key=lambda key: (JUDGED.index(key[0]), key[1]))


def _shown(key: tuple[DataKind, str]) -> str:
    return f"slice {key[1]}" if key[0] == "slice" else key[1]
