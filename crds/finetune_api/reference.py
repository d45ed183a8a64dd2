"""docs/manifest.md: every field of a FineTuneJob, from the same models as the CRD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import schema
from .failures import CLASSES, OF_THE_COMMAND, Reason, class_of, exit_code_of, hint_of
from .spec import FineTuneJobSpec
from .status import FailureClass, FineTuneJobStatus

Schema = dict[str, Any]

HEAD = """# The manifest

Generated from `finetune_api` by `make generate`; do not edit.

`apiVersion: finetune.dev/v1alpha1`, `kind: FineTuneJob`, short name `ftj`. `model`, `data` and `output` are enough;
everything else has the default told here. `finetune validate FILE` gives the API server's verdict without a cluster.
"""

OWN_BUDGET = {
    FailureClass.OutOfMemory: "with half the micro-batch, down to one row",
    FailureClass.NonFinite: "once",
}


def markdown() -> str:
    of_updates = (rule.message for rule in FineTuneJobSpec.RULES if rule.on_update_only)
    parts = [
        HEAD,
        "## spec\n\n" + _table(schema.structural(FineTuneJobSpec)),
        "## Rules\n\n" + "\n".join(f"- {message}" for message in (*_messages(schema.crd()), *of_updates)),
        "## status\n\n" + _table(schema.structural(FineTuneJobStatus)),
        "## Failures\n\n" + _failures(),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _table(root: Schema) -> str:
    rows = [f"| `{path}` | {kind} | {text} |" for path, kind, text in _fields(root, "")]
    return "| field | type | meaning |\n|---|---|---|\n" + "\n".join(rows)


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
        return "number or text"
    if "type" not in node:
        return "whole number or object"
    if "enum" in node:
        return " \\| ".join(map(str, node["enum"]))
    if node["type"] == "array":
        return f"list of {_kind(node['items'])}"
    if node["type"] == "object" and "additionalProperties" in node:
        return "map"
    words = {"integer": "whole number", "number": "number", "boolean": "true \\| false", "string": "text"}
    return words.get(node["type"], "object")


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
    lines = ["| reason | class | exit code | retried | what to do |", "|---|---|---|---|---|"]
    for reason in Reason:
        try:
            failure_class = class_of(reason)
        except KeyError:
            continue
        if reason in OF_THE_COMMAND:
            continue
        rule = CLASSES[failure_class]
        retried = OWN_BUDGET.get(failure_class) or (
            "no" if not rule.retried else "yes, counted" if rule.counted else "yes, free"
        )
        lines.append(f"| {reason} | {failure_class} | {rule.exit_code} | {retried} | {hint_of(reason)} |")
    own = " and ".join(f"{exit_code_of(reason)} ({reason})" for reason in OF_THE_COMMAND)
    of_the_command = f"The command `finetune` ends with these codes too, and where no job is to blame with {own}."
    return "\n".join([*lines, "", of_the_command])
