"""Checks that a CRD is structural and bounded, before any API server sees it (KEP-2335; CEL cost needs bounds)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_FORBIDDEN = frozenset(
    {"$ref", "$defs", "const", "title", "prefixItems", "uniqueItems", "oneOf", "discriminator", "definitions"}
)
_JUNCTION_FORBIDDEN = frozenset({"description", "default", "nullable", "additionalProperties"})


def problems(crd: Schema) -> list[str]:
    """Returns one sentence per problem: schema parts that an API server would reject, or that make CEL unbounded."""
    found: list[str] = []
    for version in crd["spec"]["versions"]:
        root = version["schema"]["openAPIV3Schema"]
        found += _walk(root, "")
        for column in version.get("additionalPrinterColumns", []):
            if column["jsonPath"].startswith(".metadata."):
                continue
            if not _resolves(root, column["jsonPath"]):
                found.append(f"printer column {column['name']}: {column['jsonPath']} is not in the schema")
    return found


def _walk(node: Schema, path: str) -> Iterator[str]:
    where = path or "(root)"
    for key in sorted(_FORBIDDEN & node.keys()):
        yield f"{where}: {key} is not allowed in a structural schema"
    int_or_string = node.get("x-kubernetes-int-or-string")
    if "type" not in node and not int_or_string and not node.get("x-kubernetes-preserve-unknown-fields"):
        yield f"{where}: no type"
    if isinstance(node.get("type"), list):
        yield f"{where}: type must be a single string"
    if "anyOf" in node and (not int_or_string or node["anyOf"] != [{"type": "integer"}, {"type": "string"}]):
        yield f"{where}: anyOf is allowed for int-or-string only"
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if key in node and not isinstance(node[key], bool):
            yield f"{where}: {key} must be a boolean, next to {key[9:].lower()}"
    if "properties" in node and "additionalProperties" in node:
        yield f"{where}: properties and additionalProperties exclude each other"
    for junction in ("allOf", "anyOf", "not"):
        for child in node.get(junction, []) if isinstance(node.get(junction), list) else []:
            for key in sorted(_JUNCTION_FORBIDDEN & child.keys()):
                yield f"{where}: {key} inside {junction}"
    yield from _bounds(node, path, where)
    yield from _list_type(node, where)
    for name, child in node.get("properties", {}).items():
        yield from _walk(child, f"{path}.{name}")
    if isinstance(node.get("items"), dict):
        yield from _walk(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from _walk(node["additionalProperties"], f"{path}{{}}")


def _bounds(node: Schema, path: str, where: str) -> Iterator[str]:
    """Reports missing bounds in spec; only spec is written by users and checked by CEL."""
    if not path.startswith(".spec"):
        return
    kind = node.get("type")
    if kind == "string" and "maxLength" not in node and "enum" not in node:
        yield f"{where}: a string without maxLength"
    if kind == "array" and "maxItems" not in node:
        yield f"{where}: a list without maxItems"
    if kind == "object" and "additionalProperties" in node and "maxProperties" not in node:
        yield f"{where}: a map without maxProperties"
    if kind in ("integer", "number") and not node.keys() & {"maximum", "enum"}:
        yield f"{where}: a number without maximum"


def _list_type(node: Schema, where: str) -> Iterator[str]:
    if node.get("type") != "array":
        return
    kind = node.get("x-kubernetes-list-type")
    if kind is None:
        yield f"{where}: a list without x-kubernetes-list-type"
    if kind == "map":
        item = node["items"]
        for key in node.get("x-kubernetes-list-map-keys", []):
            if key not in item.get("properties", {}):
                yield f"{where}: map key {key} is not a property of the items"
            elif key not in item.get("required", []):
                yield f"{where}: map key {key} must be required"


def _resolves(root: Schema, json_path: str) -> bool:
    node = root
    for part in re.sub(r"\[\?\(.*?\)\]", ".[]", json_path).strip(".").split("."):
        found = node.get("items") if part == "[]" else node.get("properties", {}).get(part)
        if found is None:
            return False
        node = found
    return True
