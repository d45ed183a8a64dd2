"""The end of a run: files of the artifact, the run's record, and the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from finetune_api.failures import LastWords, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Artifact, Evaluation, Scores, SliceScores, Splits
from finetune_trainer.methods import merged
from finetune_trainer.methods.lora import LoraAttached
from finetune_trainer.methods.servable import judge
from finetune_trainer.report.card import model_card
from finetune_trainer.report.html import render
from finetune_trainer.report.record import CARD_FILE, RECORD_FILE, REPORT_FILE, AttemptRecord, Provenance, RunRecord
from finetune_trainer.rundir import now
from finetune_trainer.store.artifact import commit_artifact
from finetune_trainer.store.folder import Folder

from .setup import Setup
from .state import State

_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt", "*.model",
    "*.tiktoken",
)  # fmt: skip
_PACKAGES = (
    "finetune-operator", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers", "numpy",
    "liger-kernel", "flash-attn", "flash-attn-3",
)  # fmt: skip


def evaluation_of(base: Mapping[str, Scores], tuned: Mapping[str, Scores]) -> Evaluation:
    """Scores by the names that `data_sets` gave, as status shows them."""
    slices = [name for name in base if name.startswith("slice/")]
    return Evaluation(
        base=_splits(base),
        tuned=_splits(tuned),
        slices=tuple(
            SliceScores(name=name.removeprefix("slice/"), base=base[name], tuned=tuned.get(name)) for name in slices
        ),
    )


def _splits(scores: Mapping[str, Scores]) -> Splits:
    return Splits(validation=scores.get("validation"), test=scores.get("test"), general=scores.get("general"))


def record_of(setup: Setup, state: State, evaluation: Evaluation) -> RunRecord:
    last = state.best.step if state.best else state.step
    return RunRecord(
        job=setup.plan.job,
        spec=setup.spec,
        plan=setup.resolved,
        evaluation=evaluation,
        curve=state.curve,
        validation=state.validation,
        attempts=state.attempts,
        provenance=Provenance(
            base_model=setup.spec.model.uri,
            revision=setup.local.revision,
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
        notes=tuple(_notes(setup, state)),
        data=setup.data_record,
    )


def computed_otherwise(attempts: Sequence[AttemptRecord]) -> str:
    """Where an attempt had other kernels or types of numbers than the one before, in words; empty where none had."""
    for before, after in pairwise(attempt for attempt in attempts if attempt.computed):
        if before.computed != after.computed:
            return (
                f"attempt {after.attempt} goes on, but not to the bit: it computes with {after.computed}; "
                f"attempt {before.attempt} with {before.computed}"
            )
    return ""


def _notes(setup: Setup, state: State) -> Iterator[str]:
    """What a reader should know."""
    if change := computed_otherwise(state.attempts):
        yield change
    if state.passed_over:
        yield state.passed_over
    if setup.spec.method.type == "probe":
        yield "losses are nats for each row, of the right label among all labels; the base model's by their likelihoods"
    for name, split in setup.data.statistics.splits.items():
        if split.overlong or split.untrained or split.duplicates:
            yield f"{name}: {split.line()}"
    if isinstance(setup.attached, LoraAttached) and (without := setup.attached.without):
        yield f"{without:,} parameters (experts, for instance) have no adapter"
    if setup.spec.method.type == "qlora":
        yield "base and tuned model were measured with the base in 4 bits"


def merges(spec: FineTuneJobSpec) -> bool:
    """Whether a whole model is written beside the adapter."""
    return spec.output.merged and spec.method.low_rank is not None


def check_export(setup: Setup) -> None:
    """Before the first step. ModelUnsupported where what the manifest wants could not be written in the end."""
    if merges(setup.spec):
        merged.check(setup.trainer.model.network, setup.local.path)


def commit(setup: Setup, record: RunRecord, output: Folder) -> Artifact:
    """Export, describe, upload: of rank 0 alone."""
    with tempfile.TemporaryDirectory(prefix="finetune-artifact-") as temporary:
        folder = Path(temporary)
        setup.attached.export(folder)
        tokenizer = {f.name: f for pattern in _TOKENIZER for f in setup.local.path.glob(pattern) if f.is_file()}
        files: dict[str, bytes | Path] = dict(tokenizer)
        servable, reasons = judge(folder)
        notes = [*record.notes, *(f"servable as {servable} only: {reason}" for reason in reasons)]
        if merges(setup.spec):
            whole = folder / merged.FOLDER
            trainer = setup.trainer
            merged.write(trainer.model.network, setup.local.path, whole, alive=trainer.reporter.alive)
            files |= {f"{merged.FOLDER}/{name}": file for name, file in tokenizer.items()}
            notes.append(f"{merged.FOLDER}/ is the whole model, base and adapter in one, servable as {judge(whole)[0]}")
        record = record.model_copy(update={"servable": servable, "notes": tuple(notes)})
        files |= {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
        files |= {
            RECORD_FILE: record.encode().encode(),
            REPORT_FILE: render(record).encode(),
            CARD_FILE: model_card(record).encode(),
        }
        return commit_artifact(
            output,
            files,
            run=setup.plan.job,
            kind=setup.attached.kind,
            overwrite=setup.spec.output.overwrite,
            servable=servable,
        )


def last_words(record: RunRecord, artifact: Artifact) -> LastWords:
    return LastWords(
        reason=Reason.Succeeded,
        message=f"artifact committed to {artifact.uri}",
        time=now(),
        step=record.steps,
        plan=record.plan,
        evaluation=record.evaluation,
        artifact=artifact,
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
