"""The end of a run: files of the artifact, the run's record, and the commit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from finetune_api.failures import Reason, TerminationMessage, class_of, exit_code_of, hint_of
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Artifact, Candidate
from finetune_api.text import redact
from finetune_trainer.data.earlier_rows import to_file
from finetune_trainer.methods import merged
from finetune_trainer.methods.base import Merges, without_adapter
from finetune_trainer.methods.servable import judge
from finetune_trainer.report.card import model_card
from finetune_trainer.report.html import manifest, render
from finetune_trainer.report.layers import Inside
from finetune_trainer.report.record import (
    BASE_FOLDER,
    CARD_FILE,
    RECORD_FILE,
    REPORT_FILE,
    AttemptRecord,
    Provenance,
    ReliabilityPoint,
    RunRecord,
    SliceAgainst,
)
from finetune_trainer.rundir import now
from finetune_trainer.store.artifact import commit_artifact
from finetune_trainer.store.fingerprints import fingerprint_of
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.manifest import Climbed
from finetune_trainer.store.trained_on import MEASURED
from finetune_trainer.trackers import events
from finetune_trainer.transfer.evidence import Evidence, Subject
from finetune_trainer.transfer.generated.evidence import Generated
from finetune_trainer.transfer.generated.files import answer_files
from finetune_trainer.transfer.records import BASE, encode
from finetune_trainer.transfer.release import Release
from finetune_trainer.vocabulary import derived

from .generation_config import added_stops
from .setup import Setup
from .state import State
from .switched import check_unsharded, switched
from .trained_rows import measured_rows, trained_on

_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt", "*.model",
    "*.tiktoken", "*processor_config.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
_PACKAGES = (
    "finetune-operator", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers", "numpy",
    "liger-kernel", "flash-attn", "flash-attn-3",
)  # fmt: skip


def record_of(
    setup: Setup,
    state: State,
    evidence: Evidence,
    release: Release,
    generated: Generated | None = None,
    inside: Inside | None = None,
) -> RunRecord:
    last = state.best.step if state.best else state.step
    return RunRecord(
        job=setup.plan.job,
        spec=setup.spec,
        asked=setup.plan.spec,
        plan=setup.resolved,
        evaluation=evidence.evaluation(release.results),
        measurements=evidence.measurements,
        sources=evidence.sources,
        reliability=_reliability(evidence),
        against=tuple(_against(evidence)),
        continual=evidence.sequence,
        answers=generated.samples if generated is not None else (),
        inside=inside,
        ladder=setup.plan.publishes.ladder if setup.plan.publishes else None,
        refused=release.refusal,
        curve=state.curve,
        validation=state.validation,
        attempts=state.attempts,
        provenance=Provenance(
            base_model=setup.local.uri,
            model_class=class_in(setup.local.path),
            revision=setup.local.revision,
            base_weights=fingerprint_of(setup.local.path) if setup.rows is None else "",  # the adapter's are others
            data=dict(setup.data.digests),
            versions=_versions(),
            hardware=_hardware(setup),
            image=setup.spec.image or "",
        ),
        start_time=state.start_time,
        completion_time=now(),
        train_seconds=round(state.train_seconds, 3),
        steps=state.step,
        best_step=last if last != state.step else None,
        stop_reason=state.stopped_early or f"all {state.step} steps done",
        notes=tuple(_notes(setup, state, evidence)),
        data=setup.data_record,
    )


def class_in(folder: Path) -> str:
    """The transformers class that config.json names."""
    return str(json.loads((folder / "config.json").read_bytes())["architectures"][0])


def computed_otherwise(attempts: Sequence[AttemptRecord]) -> str:
    """Where an attempt had other kernels or types of numbers than the one before, in words; empty where none had."""
    for before, after in pairwise(attempt for attempt in attempts if attempt.computed):
        if before.computed != after.computed:
            return (
                f"attempt {after.attempt} continues, but not bit for bit: it computes with {after.computed}; "
                f"attempt {before.attempt} with {before.computed}"
            )
    return ""


def _reliability(evidence: Evidence) -> tuple[ReliabilityPoint, ...]:
    if evidence.calibrated is None:
        return ()
    return (
        *(ReliabilityPoint(model="base", **vars(each)) for each in evidence.calibrated.base),
        *(ReliabilityPoint(model="tuned", **vars(each)) for each in evidence.calibrated.tuned),
    )


def _against(evidence: Evidence) -> Iterator[SliceAgainst]:
    """Nothing without earlier artifacts: the measurements have the base model."""
    if all(each.reference == BASE for each in evidence.against):
        return
    for each in evidence.against:
        found = each.difference
        yield SliceAgainst(
            slice=each.slice,
            reference=each.reference,
            metric=found.measure.name,
            tuned_value=found.tuned,
            reference_value=found.base,
            difference=found.difference,
            low=found.low,
            high=found.high,
            p_value=each.p_value,
            flagged=each.flagged,
            rows=found.rows,
        )


def _notes(setup: Setup, state: State, evidence: Evidence) -> Iterator[str]:
    """What a reader should know."""
    if setup.earlier is not None:
        yield setup.earlier.told()
    if evidence.scale is not None:
        yield evidence.scale.told()
    if change := computed_otherwise(state.attempts):
        yield change
    if state.passed_over:
        yield state.passed_over
    if not setup.spec.method.traits.steps:
        yield "losses are nats for each row, of the right label among all labels; the base model's by their likelihoods"
    for name, split in setup.data.statistics.splits.items():
        if split.overlong or split.untrained or split.duplicates:
            yield f"{name}: {split.line()}"
    if without := without_adapter(setup.attached):
        yield f"{without:,} parameters (experts, for instance) have no adapter"
    if setup.vocabulary is not None and setup.vocabulary.record.new_tokens:
        yield "the base model was measured with the extended vocabulary, whose new embeddings had not trained yet"
    if setup.rows is not None:
        yield f"{BASE_FOLDER}/ is the base model with the embeddings that trained: the adapter is for this model"
    if setup.spec.method.traits.four_bits:
        yield "base and tuned model were measured with the base in 4 bits"


def merges(spec: FineTuneJobSpec) -> bool:
    """Whether a whole model is written next to the adapter."""
    return spec.output.merged and spec.method.traits.mergeable


def check_export(setup: Setup) -> None:
    """Called before the first step. ModelUnsupported where the artifact that is asked for could not be written,
    InvalidSpec where it could not be tested."""
    check_unsharded(setup)
    if merges(setup.spec) and isinstance(setup.attached, Merges):
        merged.check(setup.attached.changes(), setup.local.path)


def tokenizer_of(base: Path) -> dict[str, Path]:
    """The files of a model that turn text (and pictures) into its input, by their names in an artifact."""
    found = (file for pattern in _TOKENIZER for file in base.glob(pattern) if file.is_file())
    return {str(file.relative_to(base)): file for file in found}


def commit(
    setup: Setup,
    record: RunRecord,
    measured: tuple[Subject, ...],
    output: Folder,
    generated: Generated | None = None,
) -> Artifact:
    """Export, describe, upload: of rank 0 alone."""
    with tempfile.TemporaryDirectory(prefix="finetune-artifact-") as temporary:
        folder = Path(temporary)
        setup.attached.export(folder)
        tokenizer = tokenizer_of(setup.local.path)
        files: dict[str, bytes | Path] = dict(tokenizer)
        rows = setup.rows.written() if setup.rows is not None else {}
        if rows:
            derived.copy(setup.local.path, folder / BASE_FOLDER, rows=rows)
            files |= {f"{BASE_FOLDER}/{name}": file for name, file in tokenizer.items()}
        kind = record.provenance.model_class
        servable, reasons = judge(folder, kind=kind, beside=tokenizer)
        notes = [*record.notes, *(f"servable as {servable} only: {reason}" for reason in reasons)]
        added = added_stops(setup.data.train, setup.local.path) if setup.spec.method.traits.steps else None
        if added:
            added.write(folder, setup.local.path)
            notes.append(added.line)
            if rows:
                added.write(folder / BASE_FOLDER, setup.local.path)
        if merges(setup.spec) and isinstance(setup.attached, Merges):
            whole = folder / merged.FOLDER
            merged.write(setup.attached.changes(), setup.local.path, whole, alive=setup.trainer.reporter.alive)
            derived.overwrite(whole, rows)
            files |= {f"{merged.FOLDER}/{name}": file for name, file in tokenizer.items()}
            if added:
                added.write(whole, setup.local.path)
            level = judge(whole, beside=tokenizer).servable
            notes.append(f"{merged.FOLDER}/ is the whole model, base and adapter in one, servable as {level}")
        stops = added.every if added else ()
        tested = switched(setup, folder)
        update = {"servable": servable, "notes": tuple(notes), "eos_token_ids": stops, "switch_test": tested}
        record = record.model_copy(update=update)
        files |= {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
        sets = [subject.data_set(setup.data.labels) for subject in measured]
        files |= {data.path: encode(data) for data in sets}
        files |= answer_files(generated.written) if generated is not None else {}
        files |= {
            RECORD_FILE: record.encode().encode(),
            REPORT_FILE: render(record).encode(),
            CARD_FILE: model_card(record).encode(),
        }
        trained = trained_on(setup)
        if trained is not None:
            files[MEASURED] = to_file(measured_rows(setup))
        event_file, events_of_run = events.of_record(record, manifest=redact(manifest(record)))
        files[f"{events.FOLDER}/{event_file}"] = events_of_run
        return commit_artifact(
            output,
            files,
            run=setup.plan.job,
            kind=setup.attached.kind,
            overwrite=setup.spec.output.overwrite or bool(record.refused),
            servable=servable,
            temperature=record.temperature,
            ladder=_climbed(record),
            switch_test=tested,
            continual=record.continual,
            trained_on=trained,
        )


def _climbed(record: RunRecord) -> Climbed | None:
    if (ladder := record.ladder) is None:
        return None
    tried = tuple(rung.name for rung in ladder.rungs if rung.decision)  # fewShot has no run
    return Climbed(rung=ladder.best or "", tried=tried, stop_reason=ladder.stop_reason or "")


def termination_message(record: RunRecord, artifact: Artifact) -> TerminationMessage:
    return TerminationMessage(
        reason=Reason.Succeeded,
        message=f"artifact committed to {artifact.uri}",
        time=now(),
        step=record.steps,
        plan=record.plan,
        evaluation=record.evaluation,
        artifact=artifact,
    )


def refused_words(record: RunRecord, candidate: Artifact, reason: Reason) -> TerminationMessage:
    """Of a run whose artifact a guard kept back."""
    return TerminationMessage(
        failure_class=class_of(reason),
        reason=reason,
        message=f"{record.refused}; the artifact is kept as a candidate in {candidate.uri}",
        hint=f"{hint_of(reason)} To publish it all the same: finetune promote {candidate.uri}",
        exit_code=exit_code_of(reason),
        time=now(),
        step=record.steps,
        plan=record.plan,
        evaluation=record.evaluation,
        candidate=Candidate(uri=candidate.uri, digest=candidate.digest),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hardware(setup: Setup) -> str:
    world = setup.trainer.strategy.place.world_size
    if setup.trainer.model.device.type == "cuda":
        return f"{world} × {torch.cuda.get_device_name()}"
    return f"{world} × CPU process with {torch.get_num_threads()} threads of {os.cpu_count()}, {platform.machine()}"
