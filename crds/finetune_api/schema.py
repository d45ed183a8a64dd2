"""Generates the CustomResourceDefinition from the models.

pydantic's JSON Schema becomes a structural one (KEP-2335): references inlined, `anyOf` resolved into nullable or
int-or-string, `const` into enum, numeric exclusive bounds into the boolean form, defaults moved into the description.
A union of integer and object has no type in a structural schema: see `_number_or_object`.

    python -m finetune_api.schema > crds/finetunejobs.finetune.dev.yaml
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from . import names
from .base import ApiModel, Rule
from .fields import PRESERVE
from .spec import FineTuneJobSpec
from .status import FineTuneJobStatus

Schema = dict[str, Any]

NAME_RULES = (
    Rule(
        cel=f"self.metadata.name.size() <= {names.MAX_NAME_LENGTH}",
        message=f"metadata.name must have at most {names.MAX_NAME_LENGTH} characters: pods are named after it",
        holds=lambda new, _: len(_name(new)) <= names.MAX_NAME_LENGTH,
    ),
    Rule(
        cel="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        message="metadata.name must start with a letter and use only a-z, 0-9 and -: it becomes a DNS label",
        holds=lambda new, _: _is_label(_name(new)),
    ),
)

STATUS_IS_WRITTEN = (
    "(has(self.status) && has(self.status.phase) && "
    "!(has(oldSelf.status) && has(oldSelf.status.phase) && self.status.phase == oldSelf.status.phase))"
)
"""A status update does not change the spec, and any other update does not change the status."""

_DROPPED = frozenset(
    {"title", "default", "additionalProperties", "discriminator", "const", "exclusiveMinimum", "exclusiveMaximum"}
)

_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "integer", ".status.progress.percent", 0),
    ("Nodes", "integer", ".status.nodes", 0),
    ("Restarts", "integer", ".status.restarts.counted", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Method", "string", ".status.plan.method", 1),
    ("Best", "string", ".status.ladder.best", 1),
    ("Loss", "number", ".status.progress.loss", 1),
    ("ETA", "integer", ".status.progress.etaSeconds", 1),
    ("Guards", "string", ".status.conditions[?(@.type=='GuardsPassed')].status", 1),
    ("Artifact", "string", ".status.artifact.uri", 1),
)


def _name(job: dict[str, Any]) -> str:
    return str((job.get("metadata") or {}).get("name", ""))


def _is_label(name: str) -> bool:
    return (
        name[:1].isalpha() and name[-1:].isalnum() and all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in name)
    )


def updates(rules: Iterable[Rule]) -> Schema:
    """Combines the rules of updates into one rule of the whole object, which reports the first broken one.

    They are also evaluated on each status update, and for each field that a rule accesses the API server copies the
    schema of all sibling fields. So the combined rule first checks whether the spec can have changed at all."""
    told = [(re.sub(r"\b(oldSelf|self)\b", r"\1.spec", rule.cel), json.dumps(rule.message)) for rule in rules]
    *others, (_, last) = told
    return {
        "rule": f"{STATUS_IS_WRITTEN} || self.spec == oldSelf.spec || ({' && '.join(f'({cel})' for cel, _ in told)})",
        "messageExpression": "".join(f"!({cel}) ? {message} : " for cel, message in others) + last,
        "fieldPath": ".spec",
    }


def structural(model: type[ApiModel]) -> Schema:
    """Returns the structural schema of a model. Raises ValueError for what a CRD cannot express."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(schema, schema.get("$defs", {}), where=model.__name__)


def _convert(node: Schema, definitions: dict[str, Schema], *, where: str) -> Schema:
    node = _inlined(node, definitions)
    if "anyOf" in node:
        node = {
            **_merged(node, definitions, where=where),
            **{k: v for k, v in node.items() if k != "anyOf"},
        }
    if "prefixItems" in node:
        raise ValueError(f"{where}: tuples of mixed items cannot be expressed in a structural schema")
    out: Schema = {
        k: v for k, v in node.items() if k not in _DROPPED and k not in ("$defs", "properties", "items", "description")
    }
    if "const" in node:
        out["enum"] = [node["const"]]
        out.setdefault("type", "string")
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in node:
            out[bound.lower()], out[f"exclusive{bound}"] = node[f"exclusive{bound}"], True
    if "properties" in node:
        out["properties"] = {
            name: _convert(child, definitions, where=f"{where}.{name}") for name, child in node["properties"].items()
        }
    if "items" in node:
        out["items"] = _convert(node["items"], definitions, where=f"{where}[]")
    if isinstance(node.get("additionalProperties"), dict) and not out.get("x-kubernetes-preserve-unknown-fields"):
        out["additionalProperties"] = _convert(node["additionalProperties"], definitions, where=f"{where}{{}}")
    if out.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    elif "type" not in out and not out.get(PRESERVE):
        raise ValueError(f"{where}: a schema needs a type")
    if text := _described(node):
        out["description"] = text
    return out


def _described(node: Schema) -> str:
    """Returns the first paragraph of the description, followed by the default if it is a scalar."""
    text = " ".join(node.get("description", "").split("\n\n", maxsplit=1)[0].split())
    default = node.get("default")
    if default in (None, "", [], {}) or isinstance(default, dict | list):
        return text
    told = json.dumps(default).strip('"')
    return f"{text} Default {told}.".strip()


def _inlined(node: Schema, definitions: dict[str, Schema]) -> Schema:
    if "$ref" not in node:
        return node
    target = definitions[node["$ref"].rsplit("/", 1)[1]]
    return {**_inlined(target, definitions), **{k: v for k, v in node.items() if k != "$ref"}}


def _merged(node: Schema, definitions: dict[str, Schema], *, where: str) -> Schema:
    """Resolves an `anyOf`: optional (X or null), int-or-string, or integer-or-object. Others cannot be expressed."""
    variants = [_inlined(v, definitions) for v in node["anyOf"] if v.get("type") != "null"]
    if len(variants) == 1:
        return variants[0]
    if {v.get("type") for v in variants} == {"integer", "string"}:
        bounds = {key: value for variant in variants for key, value in variant.items() if key != "type"}
        return {"x-kubernetes-int-or-string": True, **bounds}
    if sorted(v.get("type", "") for v in variants) == ["integer", "object"]:
        return _number_or_object(*sorted(variants, key=lambda v: str(v["type"])), where=where)
    if all("anyOf" in v for v in variants):
        return _merged(variants[0], definitions, where=where)
    raise ValueError(f"{where}: only optional values, int-or-string and integer-or-object may be unions")


def _number_or_object(number: Schema, fields: Schema, *, where: str) -> Schema:
    """Returns a schema for an integer or an object. Without a type, each keyword of JSON Schema applies only to its own
    kind of value: bounds to numbers, `properties` to objects. Other values are excluded by bounds that they cannot
    meet, and unknown fields by the number of fields.

    CEL does not see values without a type, except for comparing `dyn(self).field == dyn(oldSelf).field`."""
    if set(fields["properties"]) != set(fields.get("required", ())):
        raise ValueError(f"{where}: all fields of an integer-or-object must be required")
    return {
        PRESERVE: True,
        **{key: number[key] for key in ("minimum", "maximum")},
        "multipleOf": 1,
        **{key: fields[key] for key in ("properties", "required")},
        "maxProperties": len(fields["properties"]),
        **{"minLength": 1, "maxLength": 0, "minItems": 1, "maxItems": 0, "not": {"enum": [True, False]}},
    }


def crd() -> Schema:
    """Returns the CustomResourceDefinition."""
    root: Schema = {
        "type": "object",
        "description": "One fine-tuning run: from a base model and data to an adapter in object storage.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(FineTuneJobSpec),
            "status": structural(FineTuneJobStatus),
        },
        "x-kubernetes-validations": [
            *({"rule": rule.cel, "message": rule.message} for rule in NAME_RULES),
            updates(rule for rule in FineTuneJobSpec.RULES if rule.on_update_only),
        ],
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
        for name, kind, path, priority in _COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


def crd_yaml() -> str:
    head = "# Generated from finetune_api by `python -m finetune_api.schema`; do not edit.\n"
    return head + yaml.dump(crd(), Dumper=_PlainDumper, sort_keys=False, width=120, allow_unicode=True)


class _PlainDumper(yaml.SafeDumper):
    """Writes YAML without anchors: equal parts are repeated."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


if __name__ == "__main__":
    print(crd_yaml(), end="")
