"""Generates docs/manifest.md (every field of a FineTuneJob, from the same models as the CRD), docs/metrics.md and the
first lines of the runbooks' sections (docs/runbooks.md), each from the records that the programs use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from . import schema, series
from .failures import CLASSES, HELD, OF_THE_COMMAND, WAITED_FOR, Reason, class_of, exit_code_of, hint_of
from .series import Scope, Series
from .spec import FineTuneJobSpec
from .status import FineTuneJobStatus

Schema = dict[str, Any]

HEAD = """# FineTuneJob reference

Generated from `finetune_api` by `make generate`; do not edit.

`apiVersion: finetune.dev/v1alpha1`, `kind: FineTuneJob`, short name `ftj`. Only `model`, `data` and `output` are
required; all other fields have the defaults listed here. `finetune validate FILE` checks a manifest without a cluster,
with the same result as the API server.
"""


def markdown() -> str:
    of_updates = (rule.message for rule in FineTuneJobSpec.RULES if rule.on_update_only)
    parts = [
        HEAD,
        "## spec\n\n" + _sections(schema.structural(FineTuneJobSpec), "spec"),
        "## Rules\n\n" + "\n".join(f"- {message}" for message in (*_messages(schema.crd()), *of_updates)),
        "## status\n\n" + _sections(schema.structural(FineTuneJobStatus), "status"),
        "## Failures\n\n" + _failures(),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


TABLE_HEAD = "| field | type | description |\n|---|---|---|\n"
LONGEST_TABLE = 24
"""Rows. The objects in a longer section get sections of their own."""


def _sections(node: Schema, path: str, *, depth: int = 3) -> str:
    """A table of the fields, in which objects link to the sections that follow."""
    head, tables = [], []
    for name, child in node.get("properties", {}).items():
        where, rows = f"{path}.{name}", [*_fields({"properties": {name: child}}, "")]
        _, kind, text = next(iter(_fields({**node, "properties": {name: child}}, "")))
        if len(rows) < 4:
            head += [(f"`{field}`", kind, text) for field, kind, text in [(name, kind, text), *rows[1:]]]
            continue
        below = child if "properties" in child else child["items"]
        shown = f"{where}[]" if below is not child else where
        head.append((f"[`{name}`](#{_anchor(shown)})", kind, text))
        title = f"{'#' * depth} {shown}\n\n"
        if len(rows) > LONGEST_TABLE and depth == 3:
            tables.append(title + _sections(below, shown, depth=4))
        else:
            tables.append(title + _table(_fields(below, "")))
    return "\n\n".join([_table(head, code=False), *tables])


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "", title.lower())


def _table(rows: Iterable[tuple[str, str, str]], *, code: bool = True) -> str:
    return TABLE_HEAD + "\n".join(f"| {f'`{path}`' if code else path} | {kind} | {text} |" for path, kind, text in rows)


def _fields(node: Schema, path: str) -> Iterator[tuple[str, str, str]]:
    required = node.get("required", [])
    for name, child in node.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        must = "**Required.** " if name in required else ""
        text = must + child.get("description", "").replace("|", "\\|") + _bounds(child)
        yield where, _kind(child), text.strip()
        yield from _fields(child, where)
        if isinstance(child.get("items"), dict):
            yield from _fields(child["items"], f"{where}[]")


def _kind(node: Schema) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "IntOrString"
    if "type" not in node:
        return "integer or object"
    if "enum" in node:
        return " \\| ".join(map(str, node["enum"]))
    if node["type"] == "array":
        return f"list of {_kind(node['items'])}"
    if node["type"] == "object" and "additionalProperties" in node:
        return "map"
    return str(node["type"])


def _bounds(node: Schema) -> str:
    if node.get("type", "integer") not in ("integer", "number") or "minimum" not in node or "maximum" not in node:
        return ""
    low = "above " if node.get("exclusiveMinimum") else ""
    high = "below " if node.get("exclusiveMaximum") else ""
    return f" ({low}{node['minimum']} to {high}{node['maximum']})"


def _messages(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", []) if "message" in rule)
        for child in node.values():
            yield from _messages(child)
    elif isinstance(node, list):
        for child in node:
            yield from _messages(child)


def _failures() -> str:
    lines = ["| reason | class | exit code | retried | fix |", "|---|---|---|---|---|"]
    for reason in Reason:
        try:
            failure_class = class_of(reason)
        except KeyError:
            continue
        if reason in OF_THE_COMMAND:
            continue
        traits = CLASSES[failure_class]
        retried = traits.budget.retried if traits.budget else "no"
        if reason in WAITED_FOR:
            retried = "waits until startup deadline"
        if reason in HELD:
            retried = "waits without a time limit"
        lines.append(f"| {reason} | {failure_class} | {traits.exit_code} | {retried} | {hint_of(reason)} |")
    *others, last = (f"{exit_code_of(reason)} ({reason})" for reason in OF_THE_COMMAND)
    own = f"{', '.join(others)} and {last}"
    of_the_command = f"The command `finetune` exits with the same codes, and with {own} if no job is the cause."
    return "\n".join([*lines, "", of_the_command])


METRICS_HEAD = """# Metrics

Generated from `finetune_api.series` by `make generate`; do not edit.

There are two sources, and each metric belongs to one of them. The operator's series survive the pods, so alerts should
use them; the agents' series give the high-resolution curves. Labels are bounded: `namespace` and `name` of the job, and
enumerations.
"""


def metrics() -> str:
    """docs/metrics.md."""
    of_job = series.of(Scope.JOB)
    most = sum(each.each for each in of_job)
    parts = [
        METRICS_HEAD,
        "## Operator (`--listen`, `/metrics`)\n\n"
        "All replicas answer, and only the leader exports jobs. "
        f"A job has at most {most} series, until it is deleted:\nthose of a finished one keep their last values, so "
        "alerts on progress ask for the phase too. [Alerts](alerts.md) are\nbuilt on these series.",
        _metrics((*of_job, *series.of(Scope.OPERATOR))),
        "## Agents (port `metrics`, 9400, of each training pod)\n\n"
        f"Each series has the labels {', '.join(f'`{each}`' for each in Scope.AGENT.labels)}.",
        _metrics(series.of(Scope.AGENT), common=Scope.AGENT.labels),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _metrics(rows: tuple[Series, ...], *, common: tuple[str, ...] = ()) -> str:
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for each in rows:
        kind = f"{each.kind}, {each.unit}" if each.unit else each.kind
        labels = [label for label in (*each.scope.labels, *each.labels) if label not in common]
        lines.append(f"| `{each.name}` | {kind} | {', '.join(labels)} | {each.text} |")
    return "\n".join(lines)


def with_heads(runbooks: str) -> str:
    """docs/runbooks.md, in which the section of each failure class begins with what its record says."""
    for name, traits in CLASSES.items():
        parts = [f"Exit code {traits.exit_code}", f"retried: {traits.budget.retried if traits.budget else 'no'}"]
        if traits.alert is not None:
            parts.append(f"alert: [{traits.alert}](alerts.md#{traits.alert.lower()})")
        head = rf"## {name}\n*{'; '.join(parts)}.*\n\n"
        runbooks = re.sub(rf"^## {name}\n(\*Exit code .*\*\n\n)?", head, runbooks, flags=re.MULTILINE)
    return runbooks
