"""A manifest, judged without a cluster: the same verdict as the API server's, in words for people.

Structure comes from the models (strict JSON, as the API server reads it), the rest from the rules that are also the
CRD's CEL. Unknown fields are problems here, as they are for `kubectl apply`.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .base import ApiModel, Rule
from .job import FineTuneJob
from .names import API_VERSION, KIND
from .schema import NAME_RULES
from .spec import FineTuneJobSpec

SCALARS = ("int", "str", "constrained-str", "constrained-int")
OBJECTS = ("NodeRange",)
"""What pydantic puts into a path for the kinds that a value may be of."""


class Problem(NamedTuple):
    """One thing that is wrong. `path` as in `kubectl`'s messages: `spec.data.train[0].uri`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ManifestError(ValueError):
    """The manifest as a whole is not usable; every problem that was found."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: 1e-4 is a number, no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def parse(text: str) -> dict[str, Any]:
    """The one FineTuneJob of a YAML text. ManifestError when there is none, or more than one."""
    try:
        documents = [d for d in yaml.load_all(text, Loader=_Loader) if d is not None]
    except yaml.YAMLError as error:
        raise ManifestError((Problem("", f"not YAML: {' '.join(str(error).split())}"),)) from error
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == KIND]
    if len(jobs) == 1:
        return jobs[0]
    if not jobs and len(documents) == 1 and isinstance(documents[0], dict):
        return documents[0]
    raise ManifestError((Problem("", f"the file must hold one {KIND}; it holds {len(jobs)}"),))


def load(source: Path | str) -> FineTuneJob:
    """A typed job from a file or from YAML text. ManifestError lists every problem."""
    if isinstance(source, Path):
        try:
            source = source.read_text(encoding="utf-8")
        except OSError as error:
            raise ManifestError((Problem("", f"cannot read {source}: {error.strerror}"),)) from error
        except UnicodeDecodeError as error:
            raise ManifestError((Problem("", f"{source} is not text in UTF-8"),)) from error
    raw = parse(source)
    if problems := validate(raw):
        raise ManifestError(problems)
    return FineTuneJob.model_validate_json(json.dumps(raw))


def validate(raw: dict[str, Any], old: dict[str, Any] | None = None) -> tuple[Problem, ...]:
    """Every problem of a manifest; with `old`, also whether it may replace that one. Empty: a cluster takes it."""
    problems = [*_head(raw), *_unknown(raw, FineTuneJob, "")]
    problems += _structure(raw)
    if not problems:
        problems += _broken(NAME_RULES, raw, old, "")
        problems += _rules(FineTuneJobSpec, raw["spec"], (old or {}).get("spec"), "spec")
    return tuple(dict.fromkeys(problems))


def _head(raw: dict[str, Any]) -> Iterator[Problem]:
    for field, word in (("apiVersion", API_VERSION), ("kind", KIND)):
        if (given := raw.get(field)) != word:
            yield Problem(field, f"must be {word}" + (f", not {given}" if isinstance(given, str) else ""))
    if not isinstance(raw.get("metadata"), dict) or not raw["metadata"].get("name"):
        yield Problem("metadata.name", "is required")


def _structure(raw: dict[str, Any]) -> Iterator[Problem]:
    head = raw["metadata"] if isinstance(raw.get("metadata"), dict) else {}
    metadata = {"name": "x", **{field: value for field, value in head.items() if value is not None}}
    given = {"metadata": metadata} | {key: raw[key] for key in ("spec",) if key in raw}
    try:
        FineTuneJob.model_validate_json(json.dumps(given))
    except ValidationError as error:
        told: dict[str, list[Any]] = {}
        for detail in error.errors(include_url=False):
            if _of_the_other_kind(detail):
                continue
            place = [part for part in detail["loc"] if part not in (*SCALARS, *OBJECTS)]
            told.setdefault(_path(place), []).append(detail)
        for path, details in told.items():
            if details[0]["type"] == "too_short" and any(other.startswith(f"{path}[") for other in told):
                continue  # only because none of its entries could be read
            yield Problem(path, _told(_fitting(details)))


def _fitting(details: list[Any]) -> Any:
    """Of a number or text: what is wrong with the kind that was given."""
    kinds = {int: ("int", "constrained-int"), str: ("str", "constrained-str")}.get(type(details[0]["input"]), ())
    neither = {**details[0], "type": "number_or_text"} if len(details) > 1 else details[0]
    return next((detail for detail in details if detail["loc"][-1] in kinds), neither)


def _of_the_other_kind(detail: Any) -> bool:
    """Of a number or object: what the one should have been says nothing to who gave the other."""
    given_object = isinstance(detail["input"], dict)
    below = detail["loc"][-1]
    return (below in SCALARS and given_object) or (below in OBJECTS and not given_object)


def _path(location: list[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _told(detail: Any) -> str:
    """A validation error in plain words."""
    context, given = detail.get("ctx", {}), detail.get("input")
    kinds = {dict: "an object", list: "a list", type(None): "nothing"}
    shown = kinds.get(type(given)) or json.dumps(given, ensure_ascii=False)
    match detail["type"]:
        case "number_or_text":
            return f"must be a whole number or text, not {shown}" + (" (quote it)" if isinstance(given, float) else "")
        case "missing":
            return "is required"
        case "literal_error":
            return f"must be one of {context['expected'].replace(chr(39), '')}, not {shown}"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            sign = {
                "greater_than_equal": "at least",
                "greater_than": "more than",
                "less_than_equal": "at most",
                "less_than": "less than",
            }
            return f"must be {sign[detail['type']]} {next(iter(context.values())):g}, not {shown}"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "string_too_short":
            return f"must have at least {context['min_length']} characters"
        case "too_long":
            return f"must have at most {context['max_length']} entries"
        case "too_short":
            return f"must have at least {context['min_length']} {'entry' if context['min_length'] == 1 else 'entries'}"
        case "string_pattern_mismatch":
            return f"{shown} does not have the form {_form(context['pattern'])}"
        case "int_type" | "int_from_float":
            return f"must be a whole number, not {shown}"
        case "float_type":
            return f"must be a number, not {shown}"
        case "bool_type":
            return f"must be true or false, not {shown}"
        case "string_type":
            return f"must be text, not {shown} (quote it)"
        case "tuple_type" | "list_type":
            return f"must be a list, not {shown}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be an object, not {shown}"
        case _:
            return str(detail["msg"])


def _form(pattern: str) -> str:
    from . import durations, fields, uris

    known = {
        uris.MODEL: "hf://org/name, s3://bucket/folder, gs://…, az://…, pvc://claim/folder or file:///folder",
        uris.DATA: "s3://bucket/path, gs://…, az://…, pvc://claim/path, file:///path or hf://datasets/org/name/path",
        uris.OUTPUT: "s3://bucket/path, gs://…, az://…, pvc://claim/path or file:///path",
        durations.PATTERN: "90s, 10m, 24h or 7d",
        fields.DNS_LABEL: "of a DNS label: a-z, 0-9 and -",
        fields.DNS_NAME: "of a Kubernetes name: a-z, 0-9, - and .",
        fields.CONTROLLER_NAME: "example.com/name",
        fields.ENV_NAME: "of a variable's name: letters, digits and _, not first a digit",
        fields.MOUNT_PATH: "of a path from the root, such as /data, without spaces and :",
        fields.QUANTITY: "2, 500m or 4Gi",
    }
    lower = "; buckets in lower case" if pattern in (uris.MODEL, uris.DATA, uris.OUTPUT) else ""
    return known.get(pattern, pattern) + lower


def _unknown(raw: Any, model: type[BaseModel], path: str) -> Iterator[Problem]:
    """Fields that no model knows, with the nearest name that exists."""
    if not isinstance(raw, dict):
        return
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    for key, value in raw.items():
        where = f"{path}.{key}" if path else str(key)
        if path in ("metadata",) or (key == "status" and not path):
            continue
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            yield Problem(where, "unknown field" + (f"; did you mean {near[0]}?" if near else ""))
            continue
        yield from _unknown_below(value, fields[key], where)


def _unknown_below(value: Any, info: FieldInfo, path: str) -> Iterator[Problem]:
    model = _model_in(info.annotation)
    if model is None:
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(item, model, f"{path}[{index}]")
    else:
        yield from _unknown(value, model, path)


def _model_in(annotation: Any) -> type[ApiModel] | None:
    """The model inside `X | None`, `tuple[X, ...]` or `Annotated[X, …]`."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, UnionType, tuple, typing.Annotated):
        return next((m for a in typing.get_args(annotation) if (m := _model_in(a))), None)
    return None


def _rules(model: type[ApiModel], new: Any, old: Any, path: str) -> Iterator[Problem]:
    """The rules of a model and of all below it. Old list items have no counterpart, as in CEL on atomic lists."""
    if not isinstance(new, dict):
        return
    old = old if isinstance(old, dict) else None
    yield from _broken(model.RULES, new, old, path)
    for name, info in model.model_fields.items():
        key = info.alias or name
        below = _model_in(info.annotation)
        if below is None or key not in new:
            continue
        if isinstance(new[key], list):
            for index, item in enumerate(new[key]):
                yield from _rules(below, item, None, f"{path}.{key}[{index}]")
        else:
            yield from _rules(below, new[key], (old or {}).get(key), f"{path}.{key}")


def _broken(rules: tuple[Rule, ...], new: dict[str, Any], old: dict[str, Any] | None, path: str) -> Iterator[Problem]:
    for rule in rules:
        if rule.on_update_only and old is None:
            continue
        if not rule.holds(new, old):
            yield Problem(path, rule.message)
