"""Lists that the API server treats as maps or sets: their order does not matter, and keys must be unique.

The models say which they are (`x-kubernetes-list-type`); what a manifest holds is read by that. Two manifests that
differ in nothing but the order of such a list are equal to the API server, so they are equal here.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from types import UnionType
from typing import Any

from pydantic.fields import FieldInfo

from .base import ApiModel
from .fields import LIST_MAP, MAP_KEYS


def ordered(value: Any, model: type[ApiModel]) -> Any:
    """Returns the JSON object with each such list sorted: equal if the API server considers manifests equal."""
    if not isinstance(value, dict):
        return value
    fields = fields_of(model)
    return {key: _ordered(below, fields[key]) if key in fields else below for key, below in value.items()}


def duplicates(value: Any, model: type[ApiModel], path: str) -> Iterator[tuple[str, str]]:
    """Yields path and message of each entry whose key (or whose value, in a set) an earlier entry has."""
    if not isinstance(value, dict):
        return
    fields = fields_of(model)
    for key, below in value.items():
        if key not in fields:
            continue
        where, inner = f"{path}.{key}" if path else key, model_in(fields[key].annotation)
        if not isinstance(below, list):
            yield from duplicates(below, inner, where) if inner else ()
            continue
        known: set[str] = set()
        for index, item in enumerate(below):
            identity = _identity(item, fields[key])
            if identity in known:
                yield f"{where}[{index}]", f"is a duplicate: an earlier entry of {where} has {identity}"
            elif identity is not None:
                known.add(identity)
            if inner:
                yield from duplicates(item, inner, f"{where}[{index}]")


def fields_of(model: type[ApiModel]) -> dict[str, FieldInfo]:
    """Returns the fields of a model by their names in a manifest."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def model_in(annotation: Any) -> type[ApiModel] | None:
    """Returns the model inside `X | None`, `tuple[X, ...]` or `Annotated[X, …]`."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, UnionType, tuple, typing.Annotated):
        return next((m for a in typing.get_args(annotation) if (m := model_in(a))), None)
    return None


def _ordered(value: Any, info: FieldInfo) -> Any:
    model = model_in(info.annotation)
    if not isinstance(value, list):
        return ordered(value, model) if model else value
    items = [ordered(item, model) if model else item for item in value]
    if any(_identity(item, info) is None for item in items):
        return items
    return sorted(items, key=lambda item: str(_identity(item, info)))


def _identity(item: Any, info: FieldInfo) -> str | None:
    """Returns the key of an entry; None in a list whose order matters, and for an entry without its keys."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    if extra.get(LIST_MAP) == "set":
        return json.dumps(item, sort_keys=True)
    keys = extra.get(MAP_KEYS)
    if not isinstance(keys, list) or not isinstance(item, dict):
        return None
    told = [f"{key}: {item[key]}" for key in map(str, keys) if key in item]
    return ", ".join(told) if len(told) == len(keys) else None
