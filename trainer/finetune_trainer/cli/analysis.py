"""`finetune analyze FILE`: what model and data are for each other before anything is trained, and what follows for the
manifest. Minutes on a CPU: it reads a sample of the rows, bounded in rows and tokens.

What can be measured depends on the data: the shift needs data.general, and the probes of the layers need labels;
without labels, gradients show which layers would move.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.data import Data
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.job import FineTuneJob
from finetune_api.manifest import ManifestError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.text import problems_text
from finetune_trainer.cli.validate import read_manifest

if TYPE_CHECKING:
    from finetune_trainer.data.corpus import Corpus
    from finetune_trainer.data.labelled import Labelled
    from finetune_trainer.data.load import Datasets
    from finetune_trainer.report.layer_curves import Curves
    from finetune_trainer.train.diagnose import Subject
    from finetune_trainer.transfer.diagnostics.advice import Findings, Gradients
    from finetune_trainer.transfer.diagnostics.concepts import Concept
    from finetune_trainer.transfer.diagnostics.probes import Curve, OwnAnswers
    from finetune_trainer.transfer.diagnostics.shift import Shift
    from finetune_trainer.transfer.diagnostics.vocabulary import Vocabulary

COUNTED = 4096
"""Of each text, documents whose tokens are counted."""
CUT = 1000
"""Of each source, documents whose words are counted."""
FEWEST_PROBED = 20
"""Labelled rows."""
SLICE_ROWS = 300
"""Of each slice, on which the probes are tried."""
TOKENS_PROBED = 60_000
"""Of all prompts together."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """documents: of each text, that the model reads; rows: labelled ones, that the probes are fitted to."""

    file: str
    cache: Path
    documents: int
    rows: int
    as_json: bool
    save: Path | None = None
    """Where to write the page with curves over the layers."""


def show_analysis(request: Request) -> int:
    from finetune_trainer.cli.analysis_text import as_json, as_text, curves_of
    from finetune_trainer.cli.ladder_plan import rule_json, rule_of, rule_text
    from finetune_trainer.transfer.diagnostics.advice import recommended

    try:
        job = read_manifest(request.file)
    except ManifestError as error:
        print(problems_text(request.file, error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    found = analyze(job.spec, request)
    advice = recommended(found, job.spec)
    text, content = as_text(found, advice), as_json(found, advice)
    if (ladder := rule_of(job.spec, rows=found.rows, labelled=found.labelled)) is not None:
        text += f"\n\n{rule_text(*ladder, job.spec)}"
        content["ladderRule"] = rule_json(*ladder)
    print(json.dumps(content, indent=2) if request.as_json else text)
    if request.save is not None:
        lead = f"{job.spec.model.uri} and its training rows, before training"
        save_page(request.save, job, lead=lead, curves=curves_of(found), text=text)
    return ExitCode.OK


def save_page(path: Path, job: FineTuneJob, *, lead: str, curves: list[Curves], text: str) -> None:
    from finetune_trainer.report.layer_curves import page

    path.write_text(page(title=job.metadata.name or "job", lead=lead, curves=curves, text=text), "utf-8")
    print(f"saved {path}", file=sys.stderr)


def analyze(spec: FineTuneJobSpec, request: Request) -> Findings:
    """FinetuneError for what is wrong with model or data."""
    from finetune_trainer.store.models import resolve_model
    from finetune_trainer.train.diagnose import Subject
    from finetune_trainer.transfer.diagnostics.advice import Findings

    model = resolve_model(spec.model, cache=request.cache)
    sets = short_documents(spec, request, model.path)
    labelled = sets.train.choices is not None and len(sets.train) >= FEWEST_PROBED
    subject = Subject.load(model.path, pad_id=sets.pad_id)
    asked = _asked(subject, spec, model.path)  # before minutes of measuring
    curve, answers = _probed(subject, sets, rows=request.rows, seed=spec.training.seed) if labelled else (None, None)
    held_out = sets.test if sets.test is not None else sets.validation
    return Findings(
        rows=sets.statistics.splits["train"].rows,
        held_out=0 if held_out is None else len(held_out),
        labelled=sets.train.choices is not None,
        blocks=subject.blocks,
        vocabulary=_vocabulary(sets, model.path, spec),
        shift=_shift(subject, sets, documents=request.documents, seed=spec.training.seed),
        curve=curve,
        answers=answers,
        concepts=_concepts(subject, asked, seed=spec.training.seed),
        gradients=None if labelled else _gradients(subject, sets, spec),
        notes=tuple(_missing(sets, labelled=labelled)),
    )


def short_documents(spec: FineTuneJobSpec, request: Request, model: Path) -> Datasets:
    """The data, cut to the windows of an analysis."""
    from finetune_trainer.data.load import load_datasets
    from finetune_trainer.data.token_sample import TOKENS

    data = spec.data.model_copy(
        update={"sequence_length": min(TOKENS, spec.data.sequence_length), "overlong": "truncate"}
    )
    return load_datasets(data, tokenizer_path=model, cache=request.cache, seed=spec.training.seed)


def _missing(sets: Datasets, *, labelled: bool) -> list[str]:
    """What was not measured, and why."""
    missing = [] if sets.general is not None else ["The shift is not measured: data.general is not set."]
    if not labelled:
        why = "the training rows have no labels" if sets.train.choices is None else f"fewer than {FEWEST_PROBED} rows"
        missing.append(f"The layers are not probed: {why}.")
    return missing


def _vocabulary(sets: Datasets, model: Path, spec: FineTuneJobSpec) -> Vocabulary:
    from finetune_trainer.data.sample import drawn_part
    from finetune_trainer.data.tokenizer import Tokenizer
    from finetune_trainer.transfer.diagnostics.advice import GENERAL
    from finetune_trainer.transfer.diagnostics.vocabulary import vocabulary

    seed = spec.training.seed
    others = {GENERAL: sets.general, **{f"slice {name}": corpus for name, corpus in sets.slices.items()}}
    return vocabulary(
        {name: drawn_part(corpus, CUT, seed) for name, corpus in _by_source(sets, spec.data).items()},
        {name: drawn_part(corpus, CUT, seed) for name, corpus in others.items() if corpus is not None},
        general=GENERAL,
        tokenizer=Tokenizer.load(model),
    )


def _by_source(sets: Datasets, data: Data) -> dict[str, Corpus]:
    """The training rows, by source where there are several with names of their own."""
    import numpy as np

    sources = sets.statistics.sources
    names = [given.name or given.uri.rstrip("/").rsplit("/", 1)[-1] for given in data.train]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        return {"training rows": sets.train}
    edges = np.cumsum([0, *(source.documents for source in sources)])
    return {name: sets.train.take(np.arange(*edges[at : at + 2])) for at, name in enumerate(names)}


def _shift(subject: Subject, sets: Datasets, *, documents: int, seed: int) -> Shift | None:
    from finetune_trainer.data.sample import drawn_part
    from finetune_trainer.transfer.diagnostics.shift import FEWEST, between

    if sets.general is None:
        return None
    task, general = (drawn_part(corpus, documents, seed) for corpus in (sets.train, sets.general))
    if min(len(task), len(general)) < FEWEST:
        raise FinetuneError(
            Reason.InvalidSpec, f"an analysis needs at least {FEWEST} documents of each text",
            "Add rows to data.general.",
        )  # fmt: skip
    counted = drawn_part(sets.train, COUNTED, seed), drawn_part(sets.general, COUNTED, seed)
    return between((task, subject.nats(task)), (general, subject.nats(general)), counted=counted)


def _probed(subject: Subject, sets: Datasets, *, rows: int, seed: int) -> tuple[Curve, OwnAnswers]:
    import numpy as np

    from finetune_trainer.data.sample import drawn_part
    from finetune_trainer.transfer.diagnostics.probes import affordable, curve, own_answers

    domains = {name: corpus for name, corpus in sets.slices.items() if corpus.choices and len(corpus) >= FEWEST_PROBED}
    sides = 2 if domains else 1  # of the memory
    layers, rows = affordable(subject.blocks, 2 * sides * subject.model.hidden_size, rows)
    part = _within(drawn_part(sets.train, rows, seed), TOKENS_PROBED, seed=seed)
    assert part.choices is not None
    gold = part.choices.gold.astype(np.int64)
    groups = np.arange(len(part)) if part.marks is None else np.unique(part.marks.groups, return_inverse=True)[1]
    slices = {}
    for name, corpus in domains.items():
        most = max(FEWEST_PROBED, min(SLICE_ROWS, rows // len(domains)))
        held = _within(drawn_part(corpus, most, seed), TOKENS_PROBED // len(domains), seed=seed)
        assert held.choices is not None
        slices[name] = subject.prompt_states(held, layers), held.choices.gold.astype(np.int64)
    found = curve(
        subject.prompt_states(part, layers), gold, groups, layers=layers, blocks=subject.blocks, seed=seed,
        slices=slices,
    )  # fmt: skip
    return found, own_answers(subject.label_logs(part), found, gold, groups)


def _asked(subject: Subject, spec: FineTuneJobSpec, model: Path) -> tuple[Labelled, ...]:
    """The labelled tokens of diagnostics.probes."""
    from finetune_trainer.data.labelled import labelled
    from finetune_trainer.data.tokenizer import Tokenizer
    from finetune_trainer.train.diagnosing import fewer

    tokenizer, part = Tokenizer.load(model), fewer(subject.model.hidden_size)
    return tuple(labelled(probe, tokenizer, seed=spec.training.seed, fewer=part) for probe in spec.diagnostics.probes)


def _concepts(subject: Subject, asked: tuple[Labelled, ...], *, seed: int) -> tuple[Concept, ...]:
    """In the layers that a run would look at."""
    from finetune_trainer.train.diagnosing import compared_layers
    from finetune_trainer.transfer.diagnostics.concepts import concept

    layers = compared_layers(subject.blocks)
    return tuple(
        concept(probe, subject.token_states(probe.sample, layers), layers=layers, seed=seed) for probe in asked
    )


def _gradients(subject: Subject, sets: Datasets, spec: FineTuneJobSpec) -> Gradients:
    """What `partial` measures where it trains as many layers as the data asks for."""
    from finetune_trainer.methods.partial import last_layers
    from finetune_trainer.transfer.diagnostics.advice import Gradients

    found = subject.layer_gradients(sets.train, seed=spec.training.seed, batch_size=spec.training.batch_size)
    return Gradients(relative=tuple(found), trained=last_layers(found))


def _within(corpus: Corpus, tokens: int, *, seed: int) -> Corpus:
    """As many documents as have about so many tokens together."""
    from finetune_trainer.data.sample import drawn_part

    most = int(len(corpus) * tokens / max(1, int(corpus.lengths.sum())))
    return corpus if most >= len(corpus) else drawn_part(corpus, max(FEWEST_PROBED, most), seed)
