"""`finetune analyze FILE --against ARTIFACT`: how far tuning moved the states of each layer, on held-out rows and on
general text. docs/analyze.md explains each number."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.manifest import ManifestError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.jobs import Where
from finetune_trainer.cli.text import aligned, problems_text, table
from finetune_trainer.cli.validate import read_manifest

if TYPE_CHECKING:
    from finetune_trainer.cli.analysis import Request
    from finetune_trainer.report.record import RunRecord
    from finetune_trainer.transfer.diagnostics.advice import Advice
    from finetune_trainer.transfer.diagnostics.similarity import Similarity


@dataclass(frozen=True, kw_only=True)
class Change:
    artifact: str
    blocks: int
    data: tuple[Similarity, ...]
    notes: tuple[str, ...]
    gained: bool | None
    """Whether the artifact's own evaluation calls it better on the test, or else the validation rows."""


def show_change(request: Request, *, artifact: str, tokens: int) -> int:
    """artifact: URI, folder or name of a job; tokens: of each data set, whose states are compared."""
    from finetune_trainer.cli.analysis import save_page
    from finetune_trainer.transfer.diagnostics.advice import after_training
    from finetune_trainer.transfer.diagnostics.inside import changed

    try:
        job = read_manifest(request.file)
    except ManifestError as error:
        print(problems_text(request.file, error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    found, rows = _compare(job.spec, request, artifact=artifact, wanted=tokens)
    advice = after_training(found.data, blocks=found.blocks, gained=found.gained, rows=rows)
    print(json.dumps(_as_json(found, advice), indent=2) if request.as_json else _as_text(found, advice))
    if request.save is not None:
        lead = f"{job.spec.model.uri} and {found.artifact}, layer by layer"
        curves = [changed(each).curves for each in found.data]
        save_page(request.save, job, lead=lead, curves=curves, text=_as_text(found, advice))
    return ExitCode.OK


def _compare(spec: FineTuneJobSpec, request: Request, *, artifact: str, wanted: int) -> tuple[Change, int]:
    """(what changed, training rows). NotFound without a committed artifact; InvalidSpec where nothing can be
    compared."""
    from finetune_trainer.cli.analysis import short_documents
    from finetune_trainer.cli.compare import uri_of
    from finetune_trainer.data.token_sample import TokenSample
    from finetune_trainer.report.record import read_record
    from finetune_trainer.statistics.similarity import FEWEST
    from finetune_trainer.store.artifact import read_manifest as read_artifact
    from finetune_trainer.store.fetch import fetch_folder
    from finetune_trainer.store.folder import NotFound
    from finetune_trainer.store.models import resolve_model
    from finetune_trainer.store.opening import open_folder
    from finetune_trainer.train.diagnose import Subject
    from finetune_trainer.transfer.diagnostics.advice import better
    from finetune_trainer.transfer.diagnostics.probes import affordable
    from finetune_trainer.transfer.diagnostics.similarity import held_out, lacking, similarity

    uri = uri_of(artifact, Where(home=request.cache.parent))
    folder = open_folder(uri, prefix=names.PREFIX_OUTPUT)
    try:
        read_artifact(folder)
        record = read_record(folder)
    except NotFound:
        message = f"nothing is committed in {uri}"
        raise NotFound(message, "Check the URI: the output of a run that has succeeded.") from None
    method = _comparable(record)
    model = resolve_model(spec.model, cache=request.cache)
    sets = short_documents(spec, request, model.path)
    subject = Subject.load(model.path, pad_id=sets.pad_id)
    held = held_out({"test": sets.test, "validation": sets.validation, "general": sets.general})
    sides = 1 + len(held)  # the base's states of all data sets, and the tuned model's of one
    layers, tokens = affordable(subject.blocks, sides * subject.model.hidden_size, wanted, fewest=FEWEST)
    drawn = {
        name: TokenSample.of(corpus, tokens=tokens, seed=spec.training.seed) for name, corpus in held.items()
    }  # fmt: skip
    short = {name: lacking(len(each.documents), len(each.corpus)) for name, each in drawn.items()}
    samples = {name: each for name, each in drawn.items() if not short[name]}
    notes = [f"{name} is not compared: it has {why}." for name, why in short.items() if why]
    if not samples:
        raise FinetuneError(
            Reason.InvalidSpec,
            "there are no rows to compare the models on: " + (" ".join(notes) or "nothing is held out"),
            "Set data.test or data.general, with at least 1,024 tokens.",
        )
    before = {name: subject.token_states(sample, layers) for name, sample in samples.items()}
    path = fetch_folder(uri, prefix=names.PREFIX_OUTPUT, cache=request.cache)
    tuned = subject.tuned(method, path)
    found = tuple(
        similarity(
            name, before[name], tuned.token_states(sample, layers), sample.documents, layers=layers,
            seed=spec.training.seed,
        )
        for name, sample in samples.items()
    )  # fmt: skip
    notes += [
        f"SVCCA and PWCCA of {each.name} need {each.needed:,} tokens for all layers, 10 for each direction, and "
        f"{each.tokens:,} were read: use --tokens, or a larger data set."
        for each in found
        if each.needed > each.tokens
    ]
    change = Change(
        artifact=uri, blocks=subject.blocks, data=found, notes=tuple(notes), gained=better(record.evaluation)
    )
    return change, sets.statistics.splits["train"].rows


def _comparable(record: RunRecord) -> Any:
    """The artifact's method. InvalidSpec where the states of the model's own tokens are not what it changes."""
    method = record.spec.method
    if record.spec.vocabulary is not None:
        raise FinetuneError(
            Reason.InvalidSpec,
            "the artifact has a vocabulary of its own, so its tokens are not those of the base model",
            "Compare scores instead: finetune compare.",
        )
    if not method.traits.steps or method.traits.virtual:
        what = "leaves the model as it is" if not method.traits.steps else "puts a soft prompt before the model's input"
        raise FinetuneError(
            Reason.InvalidSpec,
            f"method {method.type} {what}: there is nothing to compare layer by layer",
            "Compare scores instead: finetune compare.",
        )
    return method.settled(record.plan.trained_layers) if method.is_open and record.plan.trained_layers else method


def _as_json(found: Change, advice: Sequence[Advice]) -> dict[str, Any]:
    from finetune_trainer.transfer.diagnostics.inside import changed

    return {
        "artifact": found.artifact,
        "data": [{**changed(each).to_json(), "changedFrom": each.changed_from} for each in found.data],
        "notes": list(found.notes),
        "recommendations": [{"set": what, "because": why} for what, why in advice],
    }


def _as_text(found: Change, advice: Sequence[Advice]) -> str:
    parts = [f"Base model and {found.artifact}, layer by layer (1: unchanged; null: documents permuted)"]
    parts += [_table(each) for each in found.data]
    parts += ["\n".join(found.notes)] if found.notes else []
    if advice:
        told = "\n".join(f"  {what}\n{aligned([('', why)])}" for what, why in advice)
        parts.append(f"Recommended for the next run:\n{told}")
    return "\n\n".join(parts)


def _table(each: Similarity) -> str:
    head = ("layer", "CKA", "± error", "null", "raw CKA", "SVCCA", "null", "PWCCA", "null")
    lines = []
    for layer in each.layers:
        canonical, chance = layer.canonical, layer.canonical_null
        last = ("", "", "", "")
        if canonical is not None and chance is not None:
            values = canonical.svcca, chance.svcca, canonical.pwcca, chance.pwcca
            last = tuple(f"{value:.3f}" for value in values)  # type: ignore[assignment]
        mark = " *" if layer.layer == each.changed_from else ""
        numbers = (f"{value:.4f}" for value in (layer.cka, layer.error, layer.null, layer.raw))
        lines.append((f"{layer.layer}{mark}", *numbers, *last))
    changed = "  * the lowest layer that changed" if each.changed_from is not None else "  no layer changed"
    return f"{each.name}: {each.tokens:,} tokens of {each.documents:,} documents\n{table(head, lines)}\n{changed}"
