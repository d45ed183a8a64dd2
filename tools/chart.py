"""Writes the generated parts of charts/finetune-operator: values.yaml, values.schema.json and the README's table from
tools/chart_values.py, dashboards/, files/ as copies of the CRD and the operator's rights, since Helm packs no links,
and the CEL variables of the admission policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tools import admission, dashboards
from tools.chart_values import Values

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "finetune-operator"
COPIES = {
    "crd.yaml": ROOT / "crds" / "finetunejobs.finetune.dev.yaml",
    **{
        name: ROOT / "operator" / name
        for name in ("rbac.yaml", "rbac-leader.yaml", "rbac-gang.yaml", "rbac-network.yaml")
    },
}
START, END = "<!-- values: generated -->\n", "<!-- end of values -->\n"


def generated() -> dict[Path, str]:
    """Each generated file, with its text."""
    readme = CHART / "README.md"
    before, _, rest = readme.read_text().partition(START)
    after = rest.partition(END)[2]
    return {
        CHART / "values.yaml": values_yaml(),
        CHART / "values.schema.json": json.dumps(schema(), indent=2) + "\n",
        readme: f"{before}{START}{table()}{END}{after}",
        CHART / "files" / "admission.yaml": admission.variables_yaml(),
        **{CHART / "dashboards" / name: text for name, text in dashboards.files().items()},
        **{CHART / "files" / name: source.read_text() for name, source in COPIES.items()},
    }


def values_yaml() -> str:
    head = "# Generated from tools/chart_values.py (make generate); do not edit. Unknown keys are refused.\n"
    return head + "".join(_lines(Values(), depth=0))


def table() -> str:
    """A Markdown table of all leaves."""
    rows = [
        f"| `{path}` | `{json.dumps(default)}` | {_cell(text)} |\n"
        for path, default, text in _leaves(Values(), path="")
    ]
    return "| value | default | meaning |\n|---|---|---|\n" + "".join(rows)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 7), without references. Helm's own key `global` is allowed."""
    made = Values.model_json_schema(by_alias=True)
    tree = _inlined(made, made.pop("$defs"))
    tree["properties"]["global"] = {"type": "object", "description": "Values of a parent chart; not used."}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **tree, "title": "Values of finetune-operator"}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if reference := node.get("$ref"):
        target = definitions[reference.rsplit("/", 1)[1]]
        return _inlined({**target, **{key: node[key] for key in node.keys() - {"$ref", "default"}}}, definitions)
    out = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _inlined(child, definitions) for name, child in value.items()}
        elif key != "title" and not (key == "description" and node.get("type") == "object" and "properties" in node):
            out[key] = value if key == "default" else _inlined(value, definitions)
    return out


def _fields(part: BaseModel) -> Iterator[tuple[str, Any, str]]:
    for name, field in type(part).model_fields.items():
        yield field.alias or name, getattr(part, name), " ".join((field.description or "").split())


def _lines(part: BaseModel, *, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, value, text in _fields(part):
        if text:
            yield f"{indent}# {text}\n"
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:\n"
            yield from _lines(value, depth=depth + 1)
        else:
            written = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
            yield f"{indent}{key}: {written}\n"


def _leaves(part: BaseModel, *, path: str) -> Iterator[tuple[str, Any, str]]:
    for key, value, text in _fields(part):
        if isinstance(value, BaseModel):
            yield from _leaves(value, path=f"{path}{key}.")
        else:
            yield f"{path}{key}", value, text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
