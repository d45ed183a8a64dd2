"""What an API server would say of an object by a CRD's structural schema, without its CEL rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "integer": (int,),
    "number": (int, float),
}  # fmt: skip


def problems(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Each as `path: what is wrong`. Fields that the schema does not know are problems too."""
    if value is None:
        if not schema.get("nullable"):
            yield f"{path}: null"
        return
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str) or isinstance(value, bool):
            yield f"{path}: neither integer nor string"
        return
    kind = schema.get("type", "object")
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{path}: not of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: not one of {schema['enum']}"
    check = {"object": _object, "array": _array, "string": _string}.get(kind, _number)
    yield from check(value, schema, path)


def _object(value: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    known, more = schema.get("properties", {}), schema.get("additionalProperties")
    yield from (f"{path}.{name}: missing" for name in schema.get("required", ()) if name not in value)
    if len(value) > schema.get("maxProperties", len(value)):
        yield f"{path}: too many fields"
    for name, each in value.items():
        if name not in known and not more:
            yield f"{path}.{name}: unknown"
        else:
            yield from problems(each, known.get(name) or (more if isinstance(more, dict) else {}), f"{path}.{name}")


def _array(value: list[Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f"{path}: {len(value)} entries"
    if keys := schema.get("x-kubernetes-list-map-keys"):
        names = [json.dumps([each.get(key) for key in keys]) for each in value if isinstance(each, dict)]
        if len(set(names)) < len(names):
            yield f"{path}: two of one name"
    for index, each in enumerate(value):
        yield from problems(each, schema.get("items", {}), f"{path}[{index}]")


def _string(value: str, schema: dict[str, Any], path: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path}: {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: does not match {schema['pattern']}"
    if schema.get("format") == "date-time":
        try:
            datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            yield f"{path}: not a time"


def _number(value: float, schema: dict[str, Any], path: str) -> Iterator[str]:
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    if not low <= value <= high or (schema.get("exclusiveMinimum") and value == low):
        yield f"{path}: {value} is out of range"
