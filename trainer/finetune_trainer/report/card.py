"""The artifact's README.md: what the model is, what it was made from, how it does, how to load it.

The YAML in front is what model hubs read (base_model, library, metrics); the text is for people.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from .compare import Metric, Row, compare, difference, headline, number, sentences
from .record import REPORT_FILE, RunRecord

_LIBRARIES = dict.fromkeys(("lora", "dora", "qlora", "prompt", "ptuning", "prefix"), "peft")
_LIBRARIES |= dict.fromkeys(("adapter", "probe"), "finetune-operator")
"""Method → library that loads the artifact; transformers otherwise."""


def model_card(record: RunRecord) -> str:
    """Markdown with YAML front matter."""
    rows = compare(record.evaluation)
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
            mode="json", by_alias=True, exclude_defaults=True, include={"method", "training", "data"}
        ),
        "versions": dict(sorted(origin.versions.items())),
        "metrics": [_metrics(row) for row in rows],
        "run": record.job.to_json(),
    }
    return {name: value for name, value in front.items() if value not in (None, [], {})}


def _metrics(row: Row) -> dict[str, Any]:
    """Numbers as they were measured, without rounding."""
    values = {str(c.metric).replace(" ", "_"): {"base": c.base, "tuned": c.tuned} for c in row.changes}
    return {"name": row.name, "kind": row.kind, "rows": row.rows, **values}


def _body(record: RunRecord, rows: tuple[Row, ...]) -> Iterator[str]:
    origin = record.provenance
    base = origin.base_model or record.spec.model.uri
    at = f" at revision `{origin.revision}`" if origin.revision else ""
    yield f"# {record.job.name}\n"
    yield f"{_method(record)} fine-tuning of `{base}`{at}, {record.steps:,} optimizer steps.\n"
    yield from (f"- {sentence}" for sentence in sentences(rows))
    if judged := headline(rows):
        yield "\n## Before and after\n"
        metrics = [m for m in Metric if any(r.change(m) for r in rows)]
        yield "| data set | rows | " + " | ".join(f"{m}, base | tuned | change" for m in metrics) + " |"
        yield "|---|---:|" + "---:|" * (3 * len(metrics))
        yield from (_table_row(row, metrics) for row in rows)
        yield f"\nJudged by the {judged.name} rows; both models saw the same rows. Curves and details: `{REPORT_FILE}`."
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
    yield "- every file is named with its sha256 in `manifest.json`; `finetune verify URI` checks them"


def _table_row(row: Row, metrics: list[Metric]) -> str:
    cells = [_cell(row.name), f"{row.rows:,}"]
    for metric in metrics:
        change = row.change(metric)
        cells += [number(metric, change.base), number(metric, change.tuned), difference(change)] if change else [""] * 3
    return f"| {' | '.join(cells)} |"


def _usage(record: RunRecord, base: str) -> Iterator[str]:
    revision = f", revision={record.provenance.revision!r}" if record.provenance.revision else ""
    if _library(record) == "peft":
        yield "from peft import PeftModel"
        yield "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        yield f"base = AutoModelForCausalLM.from_pretrained({base!r}{revision})"
        yield 'model = PeftModel.from_pretrained(base, "path/of/this/folder")'
    elif _library(record) == "finetune-operator":
        yield "from pathlib import Path\n"
        yield f"from finetune_trainer.methods.{_method(record)} import load"
        yield "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        yield f"base = AutoModelForCausalLM.from_pretrained({base!r}{revision})"
        yield 'model = load(base, Path("path/of/this/folder"))'
    else:
        yield "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        yield 'model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")'
    if record.spec.output.merged and record.spec.method.low_rank:
        yield "# or the whole model, as any server takes it:"
        yield 'model = AutoModelForCausalLM.from_pretrained("path/of/this/folder/merged")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")'


def _method(record: RunRecord) -> str:
    return record.plan.method or record.spec.method.type


def _library(record: RunRecord) -> str:
    return _LIBRARIES.get(_method(record), "transformers")


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
