"""spec.continueFrom: what an earlier artifact is, and how this run starts from it.

    an adapter      of lora or qlora, under lora or qlora: a frozen second adapter (`stacked`) on the same base model
    a whole model   by full or partial, or the folder merged/ next to an adapter: it is loaded in place of spec.model

All else is refused, before GPUs are held. An artifact is trusted through its manifest alone: what is read of it is
compared with the digests there, and of an adapter's configuration only numbers and names are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api import names
from finetune_api.admin_policy import begins_with
from finetune_api.continuing import STACKED
from finetune_api.failures import FinetuneError, Reason
from finetune_api.measurements import MOST_TASKS
from finetune_api.spec import FineTuneJobSpec, ModelSource
from finetune_trainer.data.cache import kept
from finetune_trainer.data.earlier_rows import EarlierRows, from_file
from finetune_trainer.report.record import RECORD_FILE, RunRecord, decode
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.folder import Folder, NotFound, digest_of
from finetune_trainer.store.manifest import MANIFEST, MERGED, Manifest
from finetune_trainer.store.models import LocalModel
from finetune_trainer.store.opening import open_folder
from finetune_trainer.store.sequence import Sequence, Task, held_out
from finetune_trainer.store.trained_on import MEASURED, unnamed

from .frozen_adapter import FILES, unfit

_LARGEST = {MANIFEST: 16 << 20, RECORD_FILE: 64 << 20, MEASURED: 128 << 20}
"""Bytes that are read of a file that is held in memory."""
_OTHER = "Name the output.uri of a job that succeeded."


@dataclass(frozen=True)
class Earlier:
    """The artifact that a run starts from."""

    uri: str
    manifest: Manifest
    record: RunRecord
    sequence: Sequence | None
    """The tasks up to its own; None where none of them had test data."""
    source: ModelSource
    """What is loaded: spec.model, or the artifact's whole model."""
    adapter: Path | None
    """Where the frozen adapter is, if it is one."""
    rows: EarlierRows | None
    """What its job and those before it trained on; None where its manifest does not say."""

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def prefix(self) -> str:
        """Under which the credentials of `source` are."""
        return names.PREFIX_MODEL if self.adapter else names.PREFIX_OUTPUT

    def told(self) -> str:
        job, method = self.manifest.run, self.record.spec.method.type
        how = "its adapter is frozen under the new one" if self.adapter else "its weights are the base model"
        return f"continues from {self.uri} (job {job.namespace}/{job.name}, method {method}): {how}"

    @property
    def replayed(self) -> EarlierRows:
        """InvalidSpec where the artifact does not name its training data."""
        if self.rows is None:
            raise unnamed(self.uri)
        return self.rows

    def check_model(self, local: LocalModel) -> None:
        """ModelUnsupported where the frozen adapter was trained on another commit of the model."""
        trained = self.record.provenance.revision
        if self.adapter is None or trained is None or trained == local.revision:
            return
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"continueFrom: the adapter in {self.uri} was trained on revision {trained} of {local.uri}, and this job "
            f"has {local.revision}",
            f"Set model.revision: {trained}.",
        )

    def check_files(self, local: LocalModel) -> None:
        """DataUnreadable where a whole model is not the one that was committed. Reads every byte of it."""
        if self.adapter is not None:
            return
        inside = "" if self.source.uri == self.uri else f"{MERGED}/"
        for file in sorted(local.path.iterdir()):
            entry = self.manifest.files.get(inside + file.name)
            other = entry is not None and digest_of(file) != entry.digest
            if other or (entry is None and file.suffix == ".safetensors"):
                raise _not_as_committed(self.uri, inside + file.name)

    def check_tokenizer(self, digest: str) -> None:
        """ModelUnsupported where the earlier job had another tokenizer, and so another model, under the same URI."""
        known = self.record.data.statistics.tokenizer if self.record.data.statistics else ""
        if known and known != digest:
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"continueFrom: the job of {self.uri} had another tokenizer than this model",
                "Set model to what the earlier job trained; its artifact's run.json names it.",
            )


def earlier_of(spec: FineTuneJobSpec, *, cache: Path, allowed: Collection[str] | None = None) -> Earlier | None:
    """None without spec.continueFrom. ModelNotFound without an artifact there; DataUnreadable for one that is damaged;
    ModelUnsupported for one that this job cannot start from; InvalidSpec for one with test data outside of `allowed`,
    the admin's prefixes of URIs, if there are any; the store's errors."""
    if spec.continue_from is None:
        return None
    folder = open_folder(spec.continue_from, prefix=names.PREFIX_OUTPUT)
    manifest, record = _read(folder)
    _check_base(folder.uri, record, spec)
    sequence = manifest.continual or _first(record, folder.uri)
    rows = _rows(folder, manifest)
    if allowed:
        _check_allowed(_uris(sequence, rows if spec.regularization.replays_earlier else None), allowed)
    if sequence and len(sequence.tasks) >= MOST_TASKS and spec.data.test is not None:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"continueFrom: {folder.uri} is the end of {len(sequence.tasks)} tasks in sequence, and that is the most",
            "Remove data.test, so that this job is not measured as another task.",
        )
    stacks = manifest.kind == "adapter" and {spec.method.type, record.spec.method.type} <= {*STACKED}
    stacks = stacks and record.spec.vocabulary is None  # its adapter is for a base model of its own
    source = spec.model if stacks else ModelSource(uri=_whole(folder.uri, manifest, record, spec))
    adapter = _adapter(folder, manifest, cache) if stacks else None
    return Earlier(folder.uri, manifest, record, sequence, source, adapter, rows)


def replayed_by(spec: FineTuneJobSpec, earlier: Earlier | None) -> EarlierRows | None:
    """The rows that regularization.replay.source earlier draws from; None without it. Errors of `Earlier.replayed`."""
    return earlier.replayed if earlier is not None and spec.regularization.replays_earlier else None


def _read(folder: Folder) -> tuple[Manifest, RunRecord]:
    where = f"continueFrom ({folder.uri})"
    for name in (MANIFEST, RECORD_FILE):
        if not _bounded(folder, name):
            message = f"{where}: there is no artifact, since it has no {name}"
            raise FinetuneError(Reason.ModelNotFound, message, _OTHER)
    try:
        manifest = read_manifest(folder)
        content = folder.read(RECORD_FILE)
        if RECORD_FILE not in manifest.files or digest_of(content) != manifest.files[RECORD_FILE].digest:
            raise _not_as_committed(folder.uri, RECORD_FILE)
        return manifest, decode(content)
    except NotFound:  # removed in between
        raise FinetuneError(Reason.ModelNotFound, f"{where}: there is no artifact", _OTHER) from None
    except ValueError as error:
        message = f"{where}: {RECORD_FILE} is not the record of a run ({type(error).__name__})"
        raise FinetuneError(Reason.DataUnreadable, message, _OTHER) from None


def _bounded(folder: Folder, name: str) -> bool:
    """Whether there is such a file. DataUnreadable for one that is too large to be held in memory."""
    entry = folder.stat(name)
    if entry is not None and entry.size > _LARGEST[name]:
        message = f"continueFrom ({folder.uri}): {name} has {entry.size:,} bytes"
        raise FinetuneError(Reason.DataUnreadable, message, _OTHER)
    return entry is not None


def _rows(folder: Folder, manifest: Manifest) -> EarlierRows | None:
    """None of an artifact that does not name its training data."""
    known, entry = manifest.trained_on, manifest.files.get(MEASURED)
    if known is None:
        return None
    content = folder.read(MEASURED) if entry and _bounded(folder, MEASURED) else b""
    if entry is None or digest_of(content) != entry.digest:
        raise _not_as_committed(folder.uri, MEASURED)
    try:
        return EarlierRows(known.tasks, from_file(content))
    except ValueError as error:
        raise _not_as_committed(folder.uri, MEASURED) from error


def _check_base(uri: str, record: RunRecord, spec: FineTuneJobSpec) -> None:
    trained, wanted = record.spec.model.uri.rstrip("/"), spec.model.uri.rstrip("/")
    if trained != wanted:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"continueFrom: the artifact in {uri} was trained from {trained}, and model.uri is {wanted}",
            f"Set model.uri: {trained}.",
        )


def _uris(sequence: Sequence | None, rows: EarlierRows | None) -> Iterator[tuple[str, str]]:
    """(what is read, its URI), of all that this job reads of earlier tasks."""
    for test in sequence.tasks if sequence else ():
        yield f"the test data of the earlier task {test.name} is measured again", test.test.uri
    for task, uri in rows.uris() if rows else ():
        yield f"the training rows of the earlier task {task.name} are replayed", uri


def _check_allowed(uris: Iterable[tuple[str, str]], allowed: Collection[str]) -> None:
    """The URIs of earlier tasks are not in the manifest, and so the operator has not seen them."""
    for what, uri in uris:
        if not any(begins_with(uri, prefix) for prefix in allowed):
            raise FinetuneError(
                Reason.InvalidSpec,
                f"continueFrom: {what}, and {uri} is not allowed by the admin's policy",
                f"Ask for it, or continue from an artifact with data below {', '.join(allowed)}.",
            )


def _whole(uri: str, manifest: Manifest, record: RunRecord, spec: FineTuneJobSpec) -> str:
    if manifest.kind == "model":
        return uri
    if f"{MERGED}/config.json" in manifest.files:
        return f"{uri.rstrip('/')}/{MERGED}"
    if record.spec.vocabulary is not None:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"continueFrom: the job of {uri} changed the vocabulary, and its adapter fits a base model of its own",
            "Use an artifact of method.type full, or of a job without vocabulary.",
        )
    earlier, here = record.spec.method, spec.method.type
    other = f"Set method.type: {STACKED[0]}, or use" if earlier.type in STACKED else "Use"
    made = "the earlier job with output.merged: true" if earlier.traits.mergeable else "an artifact of method.type full"
    raise FinetuneError(
        Reason.ModelUnsupported,
        f"continueFrom: the artifact in {uri} is an adapter of method.type {earlier.type}, and method.type {here} "
        "needs a whole model to start from",
        f"{other} {made}.",
    )


def _adapter(folder: Folder, manifest: Manifest, cache: Path) -> Path:
    """Its files in the cache, as they were committed."""
    if missing := [name for name in FILES if name not in manifest.files]:
        raise _not_as_committed(folder.uri, missing[0])

    def fill(target: Path) -> None:
        for name in FILES:
            if folder.download(name, target / name) != manifest.files[name].digest:
                raise _not_as_committed(folder.uri, name)

    with kept(cache / "adapters" / manifest.digest[:32], fill) as path:
        reasons = tuple(unfit(path))
    if reasons:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"continueFrom: nothing can be trained on top of the adapter in {folder.uri}: {'; '.join(reasons)}",
            "Use an adapter that finetune wrote with method.type lora or qlora.",
        )
    return path


def _first(record: RunRecord, uri: str) -> Sequence | None:
    """Of an artifact that began without continueFrom: a sequence of one task, if it has test data."""
    test = held_out(record.spec, record.data.statistics.labels if record.data.statistics else ())
    scores = record.tuned_scores("test")
    if test is None or scores is None:
        return None
    task = Task(name=record.job.name, artifact=uri, test=test)
    return Sequence(tasks=(task,), scores=((scores,),), base=(None,))


def _not_as_committed(uri: str, name: str) -> FinetuneError:
    return FinetuneError(
        Reason.DataUnreadable,
        f"continueFrom: {uri.rstrip('/')}/{name} is not the file that the artifact's manifest names",
        f"See `finetune verify {uri}`.",
    )
