"""Negative transfer: the slices of a run against the base model and against artifacts of earlier jobs.

    read_records    every data set of an artifact, checked against its manifest
    references_of   what evaluation.references names, before the first step; refused where nothing is common
    against         each slice by its main measure against each reference, on the rows that both measured
    flagged         the slices on which a reference is better, each with the best of these

Rows are matched by digest. An earlier artifact may have measured more rows or fewer (another evaluation.maxRows, the
half that judged its scale), and what is compared is what both have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_api import names
from finetune_api.evaluation import Reference
from finetune_api.failures import FinetuneError, Reason
from finetune_api.measurements import DataKind, NegativeTransfer
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.statistics.differences import Difference
from finetune_trainer.statistics.paired import Paired, difference
from finetune_trainer.statistics.transfer import negative_transfer
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.folder import Digest, Folder, NotFound, digest_of
from finetune_trainer.store.opening import open_folder

from .records import ANSWERS, BASE, ENDING, FOLDER, TUNED, DataSet, Records, common, decode, measures, paired

References = Mapping[str, Mapping[str, Records]]
"""By name of the reference and of the slice: the tuned model of an earlier artifact."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """One slice against one reference."""

    slice: str
    reference: str
    difference: Difference
    """Tuned model minus reference; its interval is adjusted for the number of slices and references."""
    p_value: float | None
    """Adjusted by Holm. None: too few rows."""
    flagged: bool


def read_records(folder: Folder) -> dict[tuple[DataKind, str], DataSet]:
    """Every file of records of an artifact. NotFound without a manifest, DataUnreadable where a file is not the one
    that it names."""
    found = {}
    for path, content in record_files(folder):
        if not path.startswith(ANSWERS):
            read = decode(content, where=f"{folder.uri}/{path}")
            found[read.kind, read.name] = read
    return found


def record_files(folder: Folder) -> Iterator[tuple[str, bytes]]:
    """(path, content) of all files of records. NotFound without a manifest, DataUnreadable where a file is not the one
    that it names."""
    for path, entry in read_manifest(folder).files.items():
        if not (path.startswith(FOLDER) and path.endswith(ENDING)):
            continue
        yield path, checked(folder, path, entry.digest)


def checked(folder: Folder, path: str, digest: Digest) -> bytes:
    """The file of an artifact. DataUnreadable unless it is the one that the manifest names."""
    content = folder.read(path)
    if digest_of(content) != digest:
        message = f"{folder.uri}/{path} is not the file that the artifact's manifest names"
        raise FinetuneError(Reason.DataUnreadable, message, f"See `finetune verify {folder.uri}`.")
    return content


def references_of(asked: Iterable[Reference], slices: Mapping[str, Corpus]) -> dict[str, dict[str, Records]]:
    """DataNotFound for a URI without an artifact, and for one that measured none of the slices; DataChanged, with the
    numbers, where it measured other rows of a slice of the same name."""
    found = {}
    for reference in asked:
        where = f"evaluation.references {reference.name} ({reference.uri})"
        try:
            data = read_records(open_folder(reference.uri, prefix=names.PREFIX_OUTPUT))
        except NotFound:
            raise FinetuneError(
                Reason.DataNotFound, f"{where}: there is no artifact", "Name the output.uri of a job that succeeded."
            ) from None
        measured = {name: each.models[TUNED] for (kind, name), each in data.items()
                    if kind == "slice" and name in slices and TUNED in each.models}  # fmt: skip
        if not measured:
            others = ", ".join(sorted(name for kind, name in data if kind == "slice")) or "none"
            raise FinetuneError(
                Reason.DataNotFound,
                f"{where} measured none of the slices {', '.join(sorted(slices))}; its slices: {others}",
                "Name an artifact that measured a slice of the same name, or remove the reference.",
            )
        for name, records in measured.items():
            _check_rows(where, name, records, slices[name])
        found[reference.name] = measured
    return found


def against(slices: Sequence[DataSet], references: References) -> tuple[Against, ...]:
    """slices: each with the records of base and tuned model. In the order of the slices, the base model first."""
    pairs: dict[tuple[str, str], Paired] = {}
    for each in slices:
        tuned = each.models[TUNED]
        beside = {BASE: each.models[BASE]} | {
            name: measured[each.name] for name, measured in references.items() if each.name in measured
        }
        for name, records in beside.items():
            one, other = common(records, tuned)
            pairs[each.name, name] = paired(one, other, measures(one, other, kind="slice")[0])
    tests = {(each.slice, each.reference): each for each in negative_transfer(pairs)}
    return tuple(
        Against(
            slice=key[0],
            reference=key[1],
            difference=difference(pair, comparisons=len(pairs)),
            p_value=tests[key].p_value,
            flagged=tests[key].flagged,
        )
        for key, pair in pairs.items()
    )


def flagged(found: Iterable[Against]) -> tuple[NegativeTransfer, ...]:
    """As status shows them: of a slice the reference that is better by most."""
    worst: dict[str, NegativeTransfer] = {}
    largest: dict[str, float] = {}
    for each in found:
        if not each.flagged or each.difference.difference is None or each.p_value is None:
            continue
        loss = abs(each.difference.difference)
        if loss > largest.get(each.slice, 0.0):
            largest[each.slice] = loss
            worst[each.slice] = NegativeTransfer(
                slice=each.slice,
                reference=each.reference,
                difference=each.difference.difference,
                p_value=each.p_value,
            )
    return tuple(worst.values())


def _check_rows(where: str, name: str, records: Records, corpus: Corpus) -> None:
    if corpus.marks is None:
        return
    digests = np.array([f"{digest:016x}" for digest in corpus.marks.rows.tolist()], np.str_)
    if not np.isin(digests, records.row).any():
        raise FinetuneError(
            Reason.DataChanged,
            f"{where} measured {len(records)} rows of slice {name}, and none of the {len(corpus)} that this job has",
            "Measure the same file in both jobs, or give the slice another name.",
        )
