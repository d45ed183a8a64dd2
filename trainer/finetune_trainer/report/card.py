"""The artifact's README.md: what the model is, what it was made from, how it does, how to load it.

The YAML in front is what model hubs read (base_model, library, metrics); the text is for people.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from finetune_api.measurements import Evaluation, Metric
from finetune_api.methods import TRAITS

from . import generated
from .compare import METRICS, WORDS, Row, difference, headline, interval_or_why, number, sentences
from .judged import rows_of
from .record import BASE_FOLDER, REPORT_FILE, RunRecord


def model_card(record: RunRecord) -> str:
    """Markdown with YAML front matter."""
    rows = rows_of(record)
    front = yaml.safe_dump(_front_matter(record, rows), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n\n" + "\n".join(_body(record, rows)) + "\n"


def _front_matter(record: RunRecord, rows: tuple[Row, ...]) -> dict[str, Any]:
    origin = record.provenance
    base = origin.base_model or record.spec.model.uri
    front: dict[str, Any] = {
        "base_model": base.removeprefix("hf://"),
        "base_model_revision": origin.revision,
        "library_name": _library(record),
        "pipeline_tag": "text-generation",
        "tags": ["finetune-operator", _method(record)],
        "datasets": [{"uri": uri, kind: digest} for uri, kind, digest in origin.digests()],
        "configuration": record.spec.model_dump(
            mode="json",
            by_alias=True,
            exclude_defaults=True,
            include={"method", "training", "given_data", "regularization", "vocabulary"},
        ),
        "versions": dict(sorted(origin.versions.items())),
        "metrics": [_metrics(row) for row in rows],
        "run": record.job.to_json(),
    }
    return {name: value for name, value in front.items() if value not in (None, [], {})}


def _metrics(row: Row) -> dict[str, Any]:
    """Numbers as they were measured, without rounding."""
    told = ("base", "tuned", "difference", "low", "high", "verdict")
    values: dict[str, Any] = {
        c.metric: {name: v for name in told if (v := getattr(c, name)) is not None} for c in row.changes
    }
    return {"name": row.name, "kind": row.kind, "rows": row.rows, "groups": row.groups, **values}


def _body(record: RunRecord, rows: tuple[Row, ...]) -> Iterator[str]:
    origin = record.provenance
    base = origin.base_model or record.spec.model.uri
    at = f" at revision `{origin.revision}`" if origin.revision else ""
    yield f"# {record.job.name}\n"
    yield f"{_method(record)} fine-tuning of `{base}`{at}, {record.steps:,} optimizer steps.\n"
    yield from (f"- {name}: {told}" for name, told in record.spec.regularization.lines())
    yield from (
        f"- {name}: {told}" for name, told in (record.spec.vocabulary.lines() if record.spec.vocabulary else ())
    )
    yield from (f"- {sentence}" for sentence in sentences(rows))
    yield from (f"- {each.told()}" for each in record.evaluation.negative_transfer)
    if record.evaluation.kl_to_base is not None:
        yield f"- {record.evaluation.kl_to_base.told()}"
    if record.evaluation.continual is not None:
        yield f"- {record.evaluation.continual.told()}"
    if record.evaluation.prior_gain is not None:
        yield f"- {record.evaluation.prior_gain.told()}"
    if judged := headline(rows):
        yield "\n## Before and after\n"
        metrics = [m for m in METRICS if any(r.change(m) for r in rows)]
        heads = (f"{WORDS[m]}, base | tuned | change | 95 % interval" for m in metrics)
        yield f"| data set | rows | {' | '.join(heads)} | verdict |"
        yield "|---|---:|" + "---:|" * (4 * len(metrics)) + "---|"
        yield from (_table_row(row, metrics) for row in rows)
        yield f"\nThe verdict is based on the {judged.name} rows; both models used the same rows. See `{REPORT_FILE}` "
        "for curves."
    if record.evaluation.generation is not None:
        yield "\n## Generated text\n"
        yield from _generated(record.evaluation)
    if record.evaluation.guards:
        yield "\n## Guards\n"
        yield from (f"- {each.told()}" for each in record.evaluation.guards)
        if record.refused:
            yield "\nThis artifact was kept back by a guard; `manifest.json` says when it was published all the same."
    if record.evaluation.remedies:
        yield "\n## Remedies\n"
        yield from (f"- {each.told()}" for each in record.evaluation.remedies)
    if lines := list(record.data.lines()):
        yield "\n## Data\n"
        yield from (f"- {topic}: {line}" for topic, line in lines)
    yield "\n## Use\n"
    yield "```python"
    yield from _usage(record, base.removeprefix("hf://"))
    yield "```\n"
    yield "## Provenance\n"
    yield from (f"- `{uri}`: {kind} `{digest}`" for uri, kind, digest in origin.digests())
    yield f"- run `{record.job.namespace}/{record.job.name}`, uid `{record.job.uid}`, seed {record.spec.training.seed}"
    if origin.versions:
        yield "- " + ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))
    yield "- `manifest.json` lists the sha256 of every file; `finetune verify URI` checks them"


def _generated(evaluation: Evaluation) -> Iterator[str]:
    yield "| metric | base | tuned | change | 95 % interval | verdict |"
    yield "|---|---|---|---|---|---|"
    for line in generated.lines(evaluation.generation):
        yield f"| {line.metric} | {line.base} | {line.tuned} | {line.change} | {line.interval} | {line.verdict} |"
    rows = evaluation.generation.rows if evaluation.generation is not None else 0
    yield f"\nGreedy answers to {rows:,} held-out prompts. {generated.sentence(evaluation.collapse)}"


def _table_row(row: Row, metrics: list[Metric]) -> str:
    cells = [_cell(row.name), f"{row.rows:,}"]
    for metric in metrics:
        change = row.change(metric)
        cells += [""] * 4 if change is None else [
            number(metric, change.base), number(metric, change.tuned), difference(change), interval_or_why(change)
        ]  # fmt: skip
    cells.append(row.verdict or "")
    return f"| {' | '.join(cells)} |"


def _usage(record: RunRecord, base: str) -> Iterator[str]:
    revision = f", revision={record.provenance.revision!r}" if record.provenance.revision else ""
    base = base.removeprefix("file://")
    if record.has_own_base:
        base, revision = f"path/of/this/folder/{BASE_FOLDER}", ""
    # Of a class with towers the Auto class may have another one for the text alone, with other names of weights.
    given = record.provenance.model_class
    loader = given if given.endswith("ForConditionalGeneration") else "AutoModelForCausalLM"
    imported = ", ".join(sorted((loader, "AutoTokenizer")))
    if _library(record) == "peft":
        yield "from peft import PeftModel"
        yield f"from transformers import {imported}\n"
        yield f"base = {loader}.from_pretrained({base!r}{revision})"
        yield 'model = PeftModel.from_pretrained(base, "path/of/this/folder")'
    elif _library(record) == "finetune-operator":
        yield "from pathlib import Path\n"
        yield f"from finetune_trainer.methods.{_method(record)} import load"
        yield f"from transformers import {imported}\n"
        yield f"base = {loader}.from_pretrained({base!r}{revision})"
        yield 'model = load(base, Path("path/of/this/folder"))'
    else:
        yield f"from transformers import {imported}\n"
        yield f'model = {loader}.from_pretrained("path/of/this/folder")'
    if record.eos_token_ids and _library(record) != "transformers":
        yield f"model.generation_config.eos_token_id = {list(record.eos_token_ids)}"
    if record.spec.output.merged and record.spec.method.traits.mergeable:
        yield "# or the merged model, for any server:"
        yield f'model = {loader}.from_pretrained("path/of/this/folder/merged")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")'


def _method(record: RunRecord) -> str:
    return record.plan.method or record.spec.method.type


def _library(record: RunRecord) -> str:
    """That loads the artifact; transformers for a method that a newer release wrote."""
    traits = TRAITS.get(_method(record))
    return traits.library if traits else "transformers"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
