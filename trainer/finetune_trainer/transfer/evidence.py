"""What tuning changed on held-out rows: base and tuned model, row by row, to differences with intervals and verdicts.

All metrics of all data sets are in the run's record, and status has the main one of each. Both are functions of the
records next to the artifact (`records`), so a reader of these computes the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from finetune_api.calibration import ScaleSweep
from finetune_api.generated_text import Collapse, Generation
from finetune_api.measurements import (
    Continual,
    DataKind,
    Divergence,
    Evaluation,
    GuardResult,
    Measurement,
    Metric,
    PriorGain,
    RemedyRun,
    Scores,
)
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.statistics.differences import Difference
from finetune_trainer.statistics.paired import difference
from finetune_trainer.store.sequence import Sequence

from .calibrated import Calibrated, calibrated
from .evaluate import Measured, likeliest
from .records import (
    BASE,
    FEW_SHOT,
    JUDGED,
    TUNED,
    DataSet,
    Floats,
    Records,
    by_source,
    matched,
    measures,
    of_rows,
    paired,
    scaled,
)
from .references import Against, References, against, flagged
from .tasks import TASK

SLICE = "slice/"
"""Before the name of a slice, where data sets of all kinds go by name."""


@dataclass(frozen=True)
class Subject:
    """One held-out data set as both models were measured on it."""

    name: str
    kind: DataKind
    corpus: Corpus
    base: Measured | Scores
    """Scores alone where the run began with a version that kept no rows of the base model."""
    tuned: Measured | None
    tried_on: Corpus | None = None
    """The rows that chose the adapter's scale; base and tuned model are of the other ones."""
    tried: Mapping[float, Measured] = field(default_factory=dict)
    """By scale, on these."""
    apart: Floats | None = None
    """(rows,): KL(base || tuned) of each, where it was measured."""
    labels: tuple[str, ...] | None = None
    """Of an earlier task's rows; None: the run's."""
    prompted: tuple[Corpus, Measured] | None = None
    """The base model with examples in its prompt, and its rows, where it was measured."""

    def measured_as(self, tuned: Measured) -> Subject:
        return replace(self, tuned=tuned)

    @property
    def scores(self) -> Scores:
        return self.base if isinstance(self.base, Scores) else self.base.scores

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The main one first: accuracy where rows are classifications, bits per byte for general text, else the
        loss, which models that cut the rows into other tokens do not have in common."""
        there: list[Metric] = ["loss"]
        if self.scores.bits_per_byte is not None:
            there.insert(0 if self.kind == "general" else 1, "bitsPerByte")
            if self.scores.tokens != self.corpus.trained_tokens:
                there.remove("loss")
        if self.scores.accuracy is not None:
            there.insert(0, "accuracy")
        return tuple(there)

    def data_set(self, labels: tuple[str, ...]) -> DataSet:
        """Its records. `labels`: of the run, where rows are classifications."""
        given = {BASE: self.base, TUNED: self.tuned}
        labels = (labels if self.labels is None else self.labels) if self.corpus.choices else ()
        models = {model: records_of(self.corpus, m, labels) for model, m in given.items() if isinstance(m, Measured)}
        if self.apart is not None and TUNED in models:
            models[TUNED] = replace(models[TUNED], kl=self.apart)
        if self.tried_on is not None:
            models |= {scaled(scale): records_of(self.tried_on, m, labels) for scale, m in self.tried.items()}
        if self.prompted is not None:
            models[FEW_SHOT] = records_of(*self.prompted, labels)
        return DataSet(name=self.name, kind=self.kind, models=models, labels=labels)


def kind_of(name: str) -> DataKind:
    """Of a data set by its name in a run: `slice/books` is a slice, `task/invoices` an earlier task."""
    return "task" if name.startswith(TASK) else next((kind for kind in JUDGED if kind == name), "slice")


def subjects(
    corpora: Mapping[str, Corpus],
    base: Mapping[str, Measured | Scores],
    tuned: Mapping[str, Measured],
    labels: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> tuple[Subject, ...]:
    """In the order in which they are judged; without those that the base model was not measured on. labels: of data
    sets that have other ones than the run."""
    found = [
        Subject(
            name.removeprefix(SLICE).removeprefix(TASK),
            kind_of(name),
            corpus,
            base[name],
            tuned.get(name),
            labels=labels.get(name),
        )
        for name, corpus in corpora.items()
        if name in base
    ]
    return tuple(sorted(found, key=lambda subject: JUDGED.index(subject.kind)))


def records_of(corpus: Corpus, measured: Measured, labels: tuple[str, ...]) -> Records:
    """One for each row of the corpus. Bytes are 0 where nats are not of text."""
    rows, groups = digests(corpus)
    choices, nats = corpus.choices, measured.labels
    files, sources = (corpus.marks.files, corpus.marks.sources) if corpus.marks is not None else ((), None)
    sized = measured.scores.bits_per_byte is not None
    answers = None if choices is None or nats is None else likeliest(corpus, nats)
    return of_rows(
        row=rows,
        group=groups,
        nats=measured.nats,
        sizes=corpus.bytes if sized else np.zeros(len(corpus), np.int64),
        tokens=measured.tokens,
        score=None if choices is None or answers is None else (answers == choices.gold).astype(np.float64),
        label=None if choices is None or answers is None else [labels[gold] for gold in choices.gold],
        prediction=None if answers is None else [labels[index] for index in answers],
        label_nats=None if answers is None else nats,
        source=None if sources is None else [files[at] for at in sources],
    )


@dataclass(frozen=True)
class Evidence:
    """Everything that base and tuned model differ by."""

    measurements: tuple[Measurement, ...] = ()
    calibrated: Calibrated | None = None
    scale: ScaleSweep | None = None
    against: tuple[Against, ...] = ()
    """Each slice compared with the base model and with earlier artifacts."""
    generation: Generation | None = None
    collapse: Collapse | None = None
    divergence: Divergence | None = None
    prior: PriorGain | None = None
    sources: tuple[Measurement, ...] = ()
    """General text by its files, where there are several."""
    sequence: Sequence | None = None
    """The tasks before this one, and it if it has test data."""
    continual: Continual | None = None
    """Of the sequence, where this run has added to it."""
    remedies: tuple[RemedyRun, ...] = ()
    """With guards.maxAttempts: the runs so far, and this one."""

    def evaluation(self, guards: tuple[GuardResult, ...] = ()) -> Evaluation:
        """As status shows it."""
        return Evaluation(
            data=main_metrics(self.measurements),
            guards=guards,
            remedies=self.remedies,
            negative_transfer=flagged(self.against),
            kl_to_base=self.divergence,
            prior_gain=self.prior,
            calibration=self.calibrated.told if self.calibrated is not None else None,
            scale=self.scale,
            generation=self.generation,
            collapse=self.collapse,
            continual=self.continual,
        )


def evidence_of(
    given: tuple[Subject, ...],
    labels: tuple[str, ...],
    scale: ScaleSweep | None = None,
    references: References = MappingProxyType({}),
) -> Evidence:
    """`scale`: how the adapter's scale was chosen, where it was. `references`: earlier artifacts on the slices."""
    both = [subject for subject in given if isinstance(subject.base, Measured) and subject.tuned is not None]
    sets = [
        subject.data_set(labels) for subject in both if subject.corpus.choices and subject.kind not in ("slice", "task")
    ]
    slices = [subject.data_set(labels) for subject in both if subject.kind == "slice"]
    general = [subject.data_set(labels) for subject in both if subject.kind == "general"]
    return Evidence(
        measurements(given, labels),
        calibrated(sets) if labels else None,
        scale,
        against(slices, references),
        sources=tuple(each for data in general for each in _sources(data)),
    )


def measurements(given: tuple[Subject, ...], labels: tuple[str, ...] = ()) -> tuple[Measurement, ...]:
    """All metrics of all data sets, the main one of each first. Intervals of slices are adjusted for the number
    of slices, and those of earlier tasks for the number of tasks."""
    number = Counter(subject.kind for subject in given)
    several = {kind: number[kind] for kind in ("slice", "task")}
    return tuple(
        each for subject in given for each in _measured(subject, labels, comparisons=several.get(subject.kind, 1))
    )


def _sources(general: DataSet) -> Iterator[Measurement]:
    """By the main metric; the intervals are adjusted for the number of files."""
    base, tuned = matched(general.models[BASE], general.models[TUNED])
    found = by_source(base, tuned, measures(base, tuned, kind="general")[0])
    for name, part in found.items():
        yield of_difference(difference(part, comparisons=len(found)), source_name(name), "general")


def source_name(file: str) -> str:
    """Of a file of general text among the data sets."""
    return f"general/{file}"


def main_metrics(all_metrics: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
    """The main one of each data set."""
    main: dict[tuple[DataKind, str], Measurement] = {}
    for each in all_metrics:
        main.setdefault((each.kind, each.name), each)
    return tuple(main.values())


def _measured(subject: Subject, labels: tuple[str, ...], *, comparisons: int) -> Iterator[Measurement]:
    """By each metric. Without both models' rows a difference cannot be distinguished from chance."""
    if isinstance(subject.base, Measured) and subject.tuned is not None:
        models = subject.data_set(labels).models
        base, tuned = matched(models[BASE], models[TUNED])
        for measure in measures(base, tuned, kind=subject.kind):
            yield of_difference(
                difference(paired(base, tuned, measure), comparisons=comparisons), subject.name, subject.kind
            )
        return
    groups = len(set(digests(subject.corpus)[1]))
    for metric in subject.metrics:
        before, after = _value(subject.scores, metric), _value(subject.tuned.scores if subject.tuned else None, metric)
        yield Measurement(
            name=subject.name,
            kind=subject.kind,
            metric=metric,
            base=before,
            tuned=after,
            difference=after - before if after is not None and before is not None else None,
            verdict="inconclusive" if subject.tuned is not None else None,
            rows=len(subject.corpus),
            groups=groups,
        )


def of_difference(found: Difference, name: str, kind: DataKind) -> Measurement:
    """As status shows it."""
    return Measurement.model_validate(
        {
            "name": name,
            "kind": kind,
            "metric": found.measure.name,
            "base": found.base,
            "tuned": found.tuned,
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "minimum_detectable": found.minimum_detectable,
            "verdict": str(found.verdict),
            "rows": found.rows,
            "groups": found.groups,
        }
    )


def digests(corpus: Corpus) -> tuple[list[str], list[str]]:
    """(of rows, of their groups); rows that were read from nowhere go by their number."""
    if corpus.marks is None:
        numbers = [f"{number:016x}" for number in range(len(corpus))]
        return numbers, numbers
    rows, groups = ([f"{digest:016x}" for digest in each.tolist()] for each in (corpus.marks.rows, corpus.marks.groups))
    return rows, groups


def _value(scores: Scores | None, metric: Metric) -> float | None:
    if scores is None:
        return None
    return scores.bits_per_byte if metric == "bitsPerByte" else scores.accuracy if metric == "accuracy" else scores.loss
