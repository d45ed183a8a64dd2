"""Two models that were measured on the same rows, from their records: every difference with interval and verdict.

Data sets are matched by name, rows by digest. Intervals of slices are adjusted for the number of slices, and slices on
which the second model is worse are flagged (negative transfer). A data set of classifications is compared by its
calibration too, general text file by file, generated answers by their scores and by how varied they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.calibration import Calibration, ScalePoint
from finetune_api.failures import FinetuneError, Reason
from finetune_api.generated_text import Collapse, Generation
from finetune_api.measurements import DataKind, Divergence, shown
from finetune_trainer.statistics.differences import Difference
from finetune_trainer.statistics.divergence import KL_TO_BASE, per_token
from finetune_trainer.statistics.paired import Paired, difference
from finetune_trainer.statistics.transfer import Transfer, negative_transfer

from .calibrated import calibrated
from .calibrated import difference as calibration_difference
from .evidence import source_name
from .generated.evidence import collapse as collapse_of
from .generated.evidence import compared
from .generated.files import AnswerRecords
from .records import (
    BASE,
    JUDGED,
    SCALE,
    TUNED,
    DataSet,
    Records,
    by_source,
    matched,
    measures,
    overlap,
    paired,
    scaled,
)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: the files of an artifact, and which of its models."""

    uri: str
    data: Mapping[tuple[DataKind, str], DataSet]
    model: str = TUNED
    answers: Mapping[str, AnswerRecords] = field(default_factory=dict)
    """Generated ones, by data set."""

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
    """What only one side measured, and which."""
    calibration: Calibration | None = None
    generation: Generation | None = None
    collapse: Collapse | None = None
    divergence: Divergence | None = None
    """Of the second model from its base."""
    scales: tuple[ScalePoint, ...] = ()
    """Of the second artifact's adapter, on the rows that chose its scale."""


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
    tasks = sum(key[0] == "task" for key in common)
    mains = {(key[1], "first"): _main(key, first, second) for key in slices}
    transfers: dict[tuple[DataKind, str], Transfer] = {("slice", each.slice): each for each in negative_transfer(mains)}
    answered, generation, collapse = _answers(first, second, only)
    return Comparison(
        lines=tuple(
            line
            for key in common
            for line in _lines(
                key, first, second, {"slice": len(slices), "task": tasks}.get(key[0], 1), transfers.get(key)
            )
        ),
        left_out=(
            *(
                f"{shown(*key)}: measured in {'the first' if key in first.measured else 'the second'} alone"
                for key in _sorted(first.measured ^ second.measured)
                if not only
            ),
            *answered,
        ),
        calibration=_figures(common, first, second),
        generation=generation,
        collapse=collapse,
        divergence=next((each for key in common if (each := _apart(key, second)) is not None), None),
        scales=_scales(second.data),
    )


def _main(key: tuple[DataKind, str], first: Side, second: Side) -> Paired:
    one, other = matched(first.records(key), second.records(key))
    return paired(one, other, measures(one, other, kind=key[0])[0])


def _lines(
    key: tuple[DataKind, str], first: Side, second: Side, comparisons: int, transfer: Transfer | None
) -> list[Line]:
    kind, name = key
    one, other = matched(first.records(key), second.records(key))
    found = [
        difference(paired(one, other, measure), comparisons=comparisons) for measure in measures(one, other, kind=kind)
    ]
    if (calibrated := _calibration(key, first, second, one, other, comparisons)) is not None:
        found.append(calibrated)
    if other.kl is not None and (one.kl is not None or first.model == BASE):
        found.append(difference(paired(one, other, KL_TO_BASE), comparisons=comparisons))
    main, *others = found
    lines = [Line(name=name, kind=kind, difference=main, transfer=transfer)]
    lines += [Line(name=name, kind=kind, difference=each) for each in others]
    sources = by_source(one, other, main.measure) if kind == "general" else {}
    return lines + [
        Line(name=source_name(file), kind=kind, difference=difference(part, comparisons=len(sources)))
        for file, part in sources.items()
    ]


def _figures(common: list[tuple[DataKind, str]], first: Side, second: Side) -> Calibration | None:
    """As in status.evaluation; None where rows are not classifications of the same labels."""
    sets = [
        DataSet(
            name=key[1], kind=key[0], labels=second.data[key].labels,
            models={BASE: first.records(key), TUNED: second.records(key)},
        )
        for key in common
        if key[0] != "slice" and first.data[key].labels == second.data[key].labels
    ]  # fmt: skip
    found = calibrated(sets)
    return found.told if found is not None else None


def _apart(key: tuple[DataKind, str], side: Side) -> Divergence | None:
    kind, records = key[0], side.records(key).sorted()
    if records.kl is None or kind not in ("test", "validation") or not records.tokens.any():
        return None
    found = per_token(records.kl, records.tokens, groups=records.group.tolist())
    return Divergence(
        name=kind, value=found.value, low=found.low, high=found.high, rows=found.rows, groups=found.groups
    )


def _answers(
    first: Side, second: Side, only: frozenset[str]
) -> tuple[tuple[str, ...], Generation | None, Collapse | None]:
    """(what cannot be compared, scores of the answers, how varied they are)."""
    name = next((name for name in ("test", "validation") if name in first.answers and name in second.answers), None)
    if name is None or (only and name not in only):
        return (), None, None
    one, other = first.answers[name], second.answers[name]
    if not (first.model in one.answers and second.model in other.answers):
        return (), None, None
    shared = len(set(one.prompts.rows) & set(other.prompts.rows))
    if one.prompts.rows != other.prompts.rows:
        counts = f"{len(one.prompts)} prompts in the first and {len(other.prompts)} in the second, {shared} in both"
        return (f"generated answers: {counts}",), None, None
    generation = compared(other.prompts, one.scores[first.model], other.scores[second.model])
    references = [
        [each.tolist() for each in side.references[model]]
        for side, model in ((one, first.model), (other, second.model))
    ]
    if references[0] != references[1] or not any(references[0]):
        return ("variety of generated text: the models cut the references into other tokens",), generation, None
    return (), generation, collapse_of(other.prompts, one.answers[first.model], other.answers[second.model])


def _scales(data: Mapping[tuple[DataKind, str], DataSet]) -> tuple[ScalePoint, ...]:
    """The curve of the scale sweep without its verdicts, which depend on the job's guards; empty without one."""
    gains, rises = (_by_scale(data, kind) for kind in ("validation", "general"))
    return tuple(
        ScalePoint(scale=scale, gain=gains.get(scale), forgetting=rises.get(scale))
        for scale in sorted({*gains, *rises})
    )


def _by_scale(data: Mapping[tuple[DataKind, str], DataSet], kind: str) -> dict[float, float]:
    """By scale: how much better the validation rows are than those of the base model, how much worse general text."""
    found: dict[float, float] = {}
    for key, each in data.items():
        origin = each.models.get(scaled(0))
        if key[0] != kind or origin is None:
            continue
        for model, records in each.models.items():
            if model.startswith(SCALE):
                one, other = matched(origin, records)
                change = difference(paired(one, other, measures(one, other, kind=key[0])[0]))
                improves = change.measure.higher_is_better == (kind == "validation")
                found[float(model.removeprefix(SCALE))] = (change.difference or 0.0) * (1 if improves else -1)
    return found


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
    return f"{shown(*key)} has {rows}, {found.common} of them in both"


def _nothing_common(first: Side, second: Side, lacking: frozenset[str]) -> FinetuneError:
    def of(side: Side) -> str:
        return ", ".join(shown(*key) for key in _sorted(side.measured)) or "nothing"

    what = f"no {' and no '.join(sorted(lacking))} to compare" if lacking else "no data set to compare"
    return FinetuneError(
        Reason.DataNotFound,
        f"{what}: {first.uri} has records of {of(first)} (model {first.model}), "
        f"{second.uri} of {of(second)} (model {second.model})",
        "Compare artifacts that were measured on the same data sets.",
    )


def _sorted(keys: frozenset[tuple[DataKind, str]]) -> list[tuple[DataKind, str]]:
    return sorted(keys, key=lambda key: (JUDGED.index(key[0]), key[1]))
