"""One record for each held-out row and model: what every evaluation is computed from, kept next to the artifact.

    evaluation/<data set>.parquet     evaluation/test.parquet, evaluation/slice/books.parquet, evaluation/task/x.parquet

    row         string   hex digest of the row's content; rows are matched by it
    group       string   what the row depends on: its document, or the value of groupBy; the row's digest if nothing
    model       string   base, tuned, scale/0.5 for the adapter at half its scale, or fewShot for the base model with
                         examples in its prompt
    nats        double   negative log-likelihood of the trained tokens, summed
    bytes       int64    UTF-8 bytes of the trained text
    tokens      int64    trained tokens
    score       double   task score: 1 or 0 for a classification; null where the row has none
    label       string   the right label; null where the row is not a classification
    prediction  string   the likeliest label, or the generated text; null where there is none
    labelNats   list     of double: nats of each label's answer, in the order of the labels; null as for label
    kl          double   KL(base || model) of the trained tokens, summed; null where it was not measured
    source      string   the file of general text, where there are several; else null

Windows of a long document are one record each, with the document as their group. The file's metadata has the schema's
version, the data set's name and kind, and the labels. Rows are sorted, so the file depends on no order of ranks.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason
from finetune_api.measurements import DataKind
from finetune_trainer.statistics.differences import Measure
from finetune_trainer.statistics.divergence import KL_TO_BASE
from finetune_trainer.statistics.paired import ACCURACY, BITS_PER_BYTE, LOSS, SCORE, Paired

from .tables import read_table

FOLDER = "evaluation/"
ANSWERS = f"{FOLDER}generated/"
"""Records of generated text, see `generated.files`."""
ENDING = ".parquet"
VERSION = 1
_METADATA = b"finetune.dev/records"
_MOST_MODELS = 32
"""The base model, the tuned one, and the scales of a sweep."""
_LATER = ("kl", "source")
"""Columns that files of earlier releases do not have."""

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]

BASE, TUNED, SCALE, FEW_SHOT = "base", "tuned", "scale/", "fewShot"

JUDGED: tuple[DataKind, ...] = ("test", "validation", "general", "slice", "task")
"""Kinds of data sets in the order in which they are judged."""


def scaled(scale: float) -> str:
    """The name of the model whose adapter is applied at `scale` (1: as trained)."""
    return f"{SCALE}{scale:g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """One model on the rows of one data set: columns of one length, see the module's docstring."""

    row: Strings
    group: Strings
    nats: Floats
    bytes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    score: Floats | None = None
    label: Strings | None = None
    prediction: Strings | None = None
    label_nats: Floats | None = None
    """(rows, labels)"""
    kl: Floats | None = None
    source: Strings | None = None

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            if column is not None and len(column) != len(self.row):
                raise ValueError(f"{name} has {len(column)} values for {len(self.row)} rows")

    def __len__(self) -> int:
        return len(self.row)

    def take(self, order: NDArray[np.int64]) -> Records:
        columns: dict[str, Any] = {
            name: None if column is None else column[order] for name, column in vars(self).items()
        }
        return Records(**columns)

    def sorted(self) -> Records:
        """By digest; rows of the same content by what was measured, so that any two orders give one result."""
        return self.take(np.lexsort((self.nats, self.group, self.row)))


def of_rows(
    *,
    row: Iterable[str],
    nats: Sequence[float] | Floats,
    sizes: Sequence[int] | NDArray[Any],
    tokens: Sequence[int] | NDArray[Any],
    group: Iterable[str] | None = None,
    score: Sequence[float] | Floats | None = None,
    label: Iterable[str] | None = None,
    prediction: Iterable[str] | None = None,
    label_nats: Floats | None = None,
    kl: Floats | None = None,
    source: Iterable[str] | None = None,
) -> Records:
    """Records from plain sequences. ValueError where their lengths differ."""
    digests = np.array(list(row), np.str_)
    return Records(
        row=digests,
        group=digests if group is None else np.array(list(group), np.str_),
        nats=np.asarray(nats, np.float64),
        bytes=np.asarray(sizes, np.int64),
        tokens=np.asarray(tokens, np.int64),
        score=None if score is None else np.asarray(score, np.float64),
        label=None if label is None else np.array(list(label), np.str_),
        prediction=None if prediction is None else np.array(list(prediction), np.str_),
        label_nats=None if label_nats is None else np.asarray(label_nats, np.float64),
        kl=None if kl is None else np.asarray(kl, np.float64),
        source=None if source is None else np.array(list(source), np.str_),
    )


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One file: a data set, and the records of every model that was measured on it."""

    name: str
    kind: DataKind
    models: Mapping[str, Records]
    labels: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """In the artifact."""
        return path_of(f"{self.kind}/{self.name}" if self.kind in ("slice", "task") else self.name)


def pooled(parts: Sequence[DataSet]) -> DataSet:
    """One data set of the rows of all of them. Columns that one lacks are left out, but not by a part without rows."""
    full = [part for part in parts if part.models]
    names = {name for part in full for name in part.models}
    models = {name: _joined([part.models[name] for part in full if name in part.models]) for name in names}
    first = (full or parts)[0]
    return replace(first, models=models)


def _joined(parts: Sequence[Records]) -> Records:
    columns: dict[str, Any] = {}
    for name in vars(parts[0]):
        column = [getattr(part, name) for part in parts]
        columns[name] = None if any(each is None for each in column) else np.concatenate(column)
    return Records(**columns)


def path_of(name: str) -> str:
    """Of a data set by its name in a run: test, or slice/books."""
    return f"{FOLDER}{name}{ENDING}"


def encode(data: DataSet) -> bytes:
    """A Parquet file, the same for the same records on any number of ranks."""
    import pyarrow
    from pyarrow import parquet

    parts = {model: records.sorted() for model, records in sorted(data.models.items())}
    note = {"version": VERSION, "name": data.name, "kind": data.kind, "labels": data.labels}
    schema = _schema().with_metadata({_METADATA: json.dumps(note).encode()})
    tables = [_table(pyarrow, schema, model, records) for model, records in parts.items()]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.concat_tables(tables) if tables else schema.empty_table(), sink, compression="zstd")
    return sink.getvalue()


def decode(content: bytes, *, where: str = "the records") -> DataSet:
    """DataUnreadable where the content is not a file of records, or one of a later version."""
    try:
        table = read_table(content)
        note = json.loads((table.schema.metadata or {})[_METADATA])
        if note["version"] != VERSION:
            raise FinetuneError(
                Reason.DataUnreadable,
                f"{where} has version {note['version']} of the record format; this program reads version {VERSION}",
                "Use the version of finetune that wrote the artifact, or a later one.",
            )
        return _data_set(table, note)
    except (KeyError, ValueError, TypeError) as error:
        raise FinetuneError(
            Reason.DataUnreadable, f"{where} is not a file of evaluation records ({error})", "Measure the model again."
        ) from error


def measures(first: Records, second: Records, *, kind: DataKind) -> tuple[Measure, ...]:
    """What two models can be compared by on these rows, the main measure first: accuracy or the task score where rows
    have one, bits per byte for general text, else the loss. Models that cut the rows into other tokens have no loss in
    common, for nats per token depend on how many tokens there are."""
    found = [LOSS]
    if first.bytes.any() and second.bytes.any():  # single rows may be without text: an end token has no bytes
        found.insert(0 if kind == "general" else 1, BITS_PER_BYTE)
        if not np.array_equal(first.tokens, second.tokens):
            found.remove(LOSS)
    if first.score is not None and second.score is not None:
        found.insert(0, SCORE if first.label is None else ACCURACY)
    return tuple(found)


def groups_of(first: Records, second: Records) -> Strings:
    """Of the same rows in the same order: those of the one that has fewer."""
    return min((first.group, second.group), key=lambda each: len(np.unique(each)))


def paired(first: Records, second: Records, measure: Measure) -> Paired:
    """first as base, second as tuned; both in the order of the same rows, as `matched` gives them. Where only one was
    measured with groups, these count."""
    group = groups_of(first, second)
    groups = group if len(np.unique(group)) < len(first) else None
    if measure in (ACCURACY, SCORE):
        assert first.score is not None
        assert second.score is not None
        return Paired.of(measure, base=first.score, tuned=second.score, groups=groups)
    if measure == KL_TO_BASE:
        assert second.kl is not None
        before = np.zeros(len(first)) if first.kl is None else first.kl
        weights, light = second.tokens, first.tokens
        return Paired.of(measure, base=before, tuned=second.kl, weights=weights, base_weights=light, groups=groups)
    if measure == BITS_PER_BYTE:
        weights, light = second.bytes * np.log(2), first.bytes * np.log(2)  # the first token of a text is not trained
        return Paired.of(
            measure, base=first.nats, tuned=second.nats, weights=weights, base_weights=light, groups=groups
        )
    return Paired.of(
        measure,
        base=first.nats,
        tuned=second.nats,
        weights=second.tokens,
        base_weights=first.tokens,
        groups=groups,
    )


def by_source(first: Records, second: Records, measure: Measure) -> dict[str, Paired]:
    """General text of several files, file by file; as for `paired`. Empty where it is of one."""
    if second.source is None:
        return {}
    parts = {name: np.flatnonzero(second.source == name) for name in np.unique(second.source).tolist()}
    return {name: paired(first.take(rows), second.take(rows), measure) for name, rows in parts.items()}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How many rows two files have in common; rows of the same content count as often as they occur."""

    first: int
    second: int
    common: int

    @property
    def same(self) -> bool:
        return self.first == self.second == self.common


def overlap(first: Records, second: Records) -> Overlap:
    one, other = Counter(first.row.tolist()), Counter(second.row.tolist())
    return Overlap(first=len(first), second=len(second), common=(one & other).total())


def matched(first: Records, second: Records) -> tuple[Records, Records]:
    """Both in the order of their digests. ValueError unless they are of the same rows."""
    if not overlap(first, second).same:
        raise ValueError("these records are of different rows")
    return first.sorted(), second.sorted()


def common(first: Records, second: Records) -> tuple[Records, Records]:
    """The rows that both have, in one order; rows of the same content as often as they occur in both. Groups are those
    of `second`, so that both count the same rows together."""
    one, other = first.sorted(), second.sorted()
    if np.array_equal(one.row, other.row):
        return replace(one, group=other.group), other
    _, here, there = np.intersect1d(_numbered(one.row), _numbered(other.row), assume_unique=True, return_indices=True)
    one, other = one.take(here), other.take(there)
    return replace(one, group=other.group), other


def _numbered(sorted_rows: Strings) -> Strings:
    """(rows,): each digest with how often it came before."""
    starts = np.flatnonzero(np.r_[True, sorted_rows[1:] != sorted_rows[:-1]]) if len(sorted_rows) else np.zeros(0, int)
    before = np.arange(len(sorted_rows)) - np.repeat(starts, np.diff(np.r_[starts, len(sorted_rows)]))
    return np.array([f"{row}/{number}" for row, number in zip(sorted_rows, before.tolist(), strict=True)], np.str_)


def _schema() -> Any:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    return pyarrow.schema(
        [
            ("row", text),
            ("group", text),
            ("model", text),
            ("nats", number),
            ("bytes", pyarrow.int64()),
            ("tokens", pyarrow.int64()),
            ("score", number),
            ("label", text),
            ("prediction", text),
            ("labelNats", pyarrow.list_(number)),
            ("kl", number),
            ("source", text),
        ]
    )


def _table(pyarrow: Any, schema: Any, model: str, records: Records) -> Any:
    columns = {
        **{name: getattr(records, name) for name in ("row", "group", "nats", "bytes", "tokens", "score", "label")},
        "prediction": records.prediction,
        "labelNats": None if records.label_nats is None else list(records.label_nats),
        "kl": records.kl,
        "source": records.source,
        "model": [model] * len(records),
    }
    empty = [None] * len(records)
    arrays = [
        pyarrow.array(empty if columns[part.name] is None else _plain(columns[part.name]), part.type) for part in schema
    ]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _plain(column: Any) -> Any:
    return column.tolist() if isinstance(column, np.ndarray) and column.dtype.kind == "U" else column


def _data_set(table: Any, note: Any) -> DataSet:
    """KeyError, TypeError or ValueError for what `encode` does not write."""
    import pyarrow

    name, kind, labels = note["name"], note["kind"], tuple(note["labels"])
    if not all(isinstance(each, str) for each in (name, *labels)) or kind not in JUDGED:
        raise ValueError("its name, kind or labels are not those of a data set")
    lacking = {each: pyarrow.nulls(len(table)) for each in _LATER if each not in table.column_names}
    table = pyarrow.table({each: lacking[each] if each in lacking else table.column(each) for each in _schema().names})
    of_model = np.array(table.column("model").to_pylist(), np.str_)
    models = [str(model) for model in np.unique(of_model)]
    if len(models) > _MOST_MODELS:
        raise ValueError(f"it has {len(models)} models, and at most {_MOST_MODELS} are read")
    found = {model: _records(table.filter(pyarrow.array(of_model == model)), labels) for model in models}
    scales = {float(model.removeprefix(SCALE)): each for model, each in found.items() if model.startswith(SCALE)}
    if any(not overlap(next(iter(scales.values())), each).same for each in scales.values()):
        raise ValueError("the scales were measured on different rows")
    return DataSet(name=name, kind=kind, labels=labels, models=found)


def _records(table: Any, labels: tuple[str, ...]) -> Records:
    def optional(name: str, dtype: type[np.generic]) -> NDArray[Any] | None:
        column = table.column(name)
        return None if column.null_count else np.array(column.to_pylist(), dtype)

    found = Records(
        row=np.array(table.column("row").to_pylist(), np.str_),
        group=np.array(table.column("group").to_pylist(), np.str_),
        nats=np.array(table.column("nats").to_pylist(), np.float64),
        bytes=np.array(table.column("bytes").to_pylist(), np.int64),
        tokens=np.array(table.column("tokens").to_pylist(), np.int64),
        score=optional("score", np.float64),
        label=optional("label", np.str_),
        prediction=optional("prediction", np.str_),
        label_nats=optional("labelNats", np.float64),
        kl=optional("kl", np.float64),
        source=optional("source", np.str_),
    )
    for name in ("nats", "score", "kl"):
        if (column := getattr(found, name)) is not None and not np.isfinite(column).all():
            raise ValueError(f"{name} has values that are not finite")
    if (found.bytes < 0).any() or (found.tokens < 0).any():
        raise ValueError("bytes or tokens are below 0")
    if labels and found.label is not None and not set(found.label.tolist()) <= set(labels):
        raise ValueError("a row has a label that the data set does not have")
    if labels and found.label_nats is not None and found.label_nats.shape[1:] != (len(labels),):
        raise ValueError(f"labelNats does not have one value for each of {len(labels)} labels")
    return found
