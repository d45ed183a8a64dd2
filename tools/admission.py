"""CEL variables of the chart's ValidatingAdmissionPolicy: what `finetune_api.admin_policy` reads from a spec, read from
a manifest. `uris` comes from the models, so a URI field that is added later is checked too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from finetune_api import accelerators, uris
from finetune_api.admin_policy import ELSEWHERE
from finetune_api.spec import FineTuneJobSpec

HEAD = "# Generated from the models of the manifest (make generate); do not edit. See tools/admission.py.\n"
PATTERNS = frozenset({uris.MODEL, uris.DATA, uris.OUTPUT})

NODES = "!has(object.spec.nodes) ? 1 : (type(object.spec.nodes) == int ? object.spec.nodes : object.spec.nodes.max)"


def _devices(of: str) -> str:
    """Of a pod, as an expression. of: the object that has its resources."""
    limits = f"{of}.resources.limits"
    return (
        f"!has({of}.resources) || !has({limits}) ? 0 : {limits}"
        f".filter(name, name.endsWith('{accelerators.WHOLE}') || name.matches('{accelerators.OTHERS}'))"
        f".filter(name, string({limits}[name]).matches('^[0-9]+$')).map(name, int({limits}[name])).sum()"
    )


CLAIMED = (
    "has(object.spec.pod) && has(object.spec.pod.resourceClaims) && object.spec.pod.resourceClaims.size() > 0 "
    "&& type(object.spec.processesPerNode) == int ? object.spec.processesPerNode : 0"
)
OVERRIDES = "has(object.spec.ladder) && has(object.spec.ladder.overrides) ? object.spec.ladder.overrides : []"
RUNG_NODES = "variables.overrides.map(each, has(each.nodes) ? each.nodes : variables.nodes)"
RUNG_GPUS = (
    "variables.overrides.map(each, (has(each.nodes) ? each.nodes : variables.nodes) * "
    f"((has(each.resources) ? ({_devices('each')}) : variables.devices) + "
    "(variables.claimed > 0 && has(each.processesPerNode) ? each.processesPerNode : variables.claimed)))"
)


def variables() -> dict[str, str]:
    """Name and expression of each variable, in an order in which each uses only earlier ones."""
    lists = [_list(steps) for steps in _paths(FineTuneJobSpec, ())]
    return {
        "uris": " + ".join(lists),
        "nodes": NODES,
        "devices": _devices("object.spec"),
        "claimed": CLAIMED,
        "gpus": "variables.nodes * (variables.devices + variables.claimed)",
        "overrides": OVERRIDES,
        "rungNodes": RUNG_NODES,
        "rungGpus": RUNG_GPUS,
    }


def variables_yaml() -> str:
    made = [{"name": name, "expression": expression} for name, expression in variables().items()]
    return HEAD + yaml.safe_dump(made, sort_keys=False, width=100_000)


def _paths(model: type[BaseModel], before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Keys to each field whose pattern is that of a URI; `*` for each element of a list."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        if before or key not in ELSEWHERE:
            patterns = {getattr(each, "pattern", None) for each in field.metadata}
            yield from _below(field.annotation, patterns, (*before, key))


def _below(annotation: Any, patterns: set[Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    metadata = getattr(annotation, "__metadata__", ())
    patterns = patterns | {
        getattr(inner, "pattern", None) for each in metadata for inner in (each, *getattr(each, "metadata", ()))
    }
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _paths(annotation, path)
    elif annotation is str:
        if patterns & PATTERNS:
            yield path
    elif get_origin(annotation) in (tuple, list):
        yield from _below(get_args(annotation)[0], set(), (*path, "*"))
    else:
        for each in get_args(annotation)[: 1 if metadata else None]:
            yield from _below(each, patterns, path)


def _list(steps: tuple[str, ...], at: str = "object.spec", depth: int = 0) -> str:
    """A CEL list with the values at a path, empty where a part of the path is absent."""
    if not steps:
        return f"[{at}]"
    key, *rest = steps
    here = f"{at}.{key}"
    if rest == ["*"]:
        return f"(has({here}) ? {here} : [])"
    if rest and rest[0] == "*":
        each = f"each{depth}"
        if not rest[2:]:
            key = rest[1]
            return f"(has({here}) ? {here}.filter({each}, has({each}.{key})).map({each}, {each}.{key}) : [])"
        raise ValueError(f"{'.'.join(steps)}: a URI this deep in a list needs another form of CEL")
    return f"(has({here}) ? {_list(tuple(rest), here, depth + 1)} : [])"
