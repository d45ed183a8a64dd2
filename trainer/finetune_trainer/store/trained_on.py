"""What an artifact's manifest says about the training data of its job and of the jobs before it, so that a later task
can replay their rows (`regularization.replay.source: earlier`).

    TrainedTask   a job's data.train: the files with their digests, and all that decides how rows are read
    TrainedOn     all jobs of a sequence, each starting from the artifact of the one before

MEASURED is a file of the artifact: the fingerprints of all rows that any of these jobs measured, which are never
replayed. No row is in the artifact, and no credentials: they are the later job's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from finetune_api.base import ApiModel
from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_api.fields import DataUri, Label, Name
from finetune_api.measurements import MOST_TASKS
from finetune_api.text import redact

MEASURED = "evaluation/measured.bin"
"""Fingerprints of the rows that any of the jobs measured."""
MOST_FILES = 4096
"""Files of a source that a manifest names."""

_Text = Annotated[str, Field(max_length=4096)]
_Keys = Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=64)]
_Digest = Annotated[str, Field(pattern=r"^(rows:)?[0-9a-f]{64}$")]


class TrainedSource(ApiModel):
    """One entry of data.train."""

    uri: DataUri = Field(description="As the job named it.")
    rows: Annotated[int, Field(ge=0)] = Field(description="In the files.")
    max_rows: Annotated[int, Field(ge=1)] | None = Field(None, description="Of these, the job drew so many.")
    files: Annotated[dict[DataUri, _Digest], Field(min_length=1, max_length=MOST_FILES)] = Field(
        description="By URI: sha256 of the file, or of its rows with prefix `rows:`."
    )


class TrainedTask(ApiModel):
    name: Name
    artifact: Annotated[str, Field(max_length=2048)] = Field(description="URI of its artifact.")
    sources: Annotated[tuple[TrainedSource, ...], Field(min_length=1, max_length=64)]
    format: Literal["chat", "completion", "text", "classification"]
    labels: Annotated[tuple[Label, ...], Field(max_length=64)] = Field((), description="Of classification.")
    instruction: _Text | None = None
    sequence_length: Annotated[int, Field(ge=8, le=1048576)]
    overlong: Literal["fail", "drop", "truncate"] = "fail"
    ignore_keys: _Keys = ()
    append_eos: bool = True
    keys: _Keys = Field((), description="That were read besides those of the format, to keep rows together.")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="Of the rows that were drawn by maxRows.")

    @property
    def files(self) -> dict[str, str]:
        """Digests by URI."""
        return {uri: digest for source in self.sources for uri, digest in source.files.items()}


class TrainedOn(ApiModel):
    tasks: Annotated[tuple[TrainedTask, ...], Field(min_length=1, max_length=MOST_TASKS)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)


def trained_task(
    data: Data,
    *,
    name: str,
    artifact: str,
    seed: int,
    labels: tuple[str, ...],
    keys: tuple[str, ...],
    rows: Sequence[int],
    files: Mapping[str, Sequence[str]],
    digests: Mapping[str, str],
) -> TrainedTask | None:
    """Of a job, by the data that it read. `rows`: of each source; `files`: the URIs of each source's files. None where
    a manifest cannot name them, such as too many files, or URIs with secrets: no run fails for that at its end."""
    uris = [uri for source in data.train for uri in files[source.uri]]
    if data.format == "auto" or any(map(_has_secret, [artifact, *(source.uri for source in data.train), *uris])):
        return None
    try:
        sources = tuple(
            TrainedSource(
                uri=source.uri,
                rows=count,
                max_rows=source.max_rows,
                files={uri: digests[uri] for uri in files[source.uri]},
            )
            for source, count in zip(data.train, rows, strict=True)
        )
        return TrainedTask(
            name=name,
            artifact=artifact,
            sources=sources,
            format=data.format,
            labels=labels,
            instruction=data.classification.instruction if data.classification else None,
            sequence_length=data.sequence_length,
            overlong=data.overlong,
            ignore_keys=data.ignore_keys,
            append_eos=data.append_eos,
            keys=keys,
            seed=seed,
        )
    except ValidationError:
        return None


def _has_secret(uri: str) -> bool:
    """A question mark alone is a pattern's."""
    plain = uri.replace("?", "*")
    return redact(plain) != plain


def unnamed(uri: str) -> FinetuneError:
    """To be raised where the rows are needed, and the manifest of the artifact does not name them."""
    return FinetuneError(
        Reason.InvalidSpec,
        f"regularization.replay.source earlier: the manifest of {uri} does not name the training data of its job and "
        f"of those before it: an older release wrote one of them, the sequence has more than {MOST_TASKS} jobs, or a "
        f"source had more than {MOST_FILES:,} files or a file name with spaces",
        "Set regularization.replay: {source: general, uri: …} to the training rows of the earlier tasks.",
    )
