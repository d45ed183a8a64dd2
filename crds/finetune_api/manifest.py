"""Validation of a manifest without a cluster: the same result as the API server's, with readable messages.

The models check the structure (strict JSON, as the API server reads it), and the rules that are also the CRD's CEL
check the rest. Unknown fields are reported here, as they are by `kubectl apply`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from . import suggest, yaml_text
from .base import ApiModel, Rule
from .job import FineTuneJob
from .listmaps import duplicates, fields_of, model_in, ordered
from .names import API_VERSION, KIND
from .schema import NAME_RULES
from .spec import FineTuneJobSpec
from .text import redact

SCALARS = ("int", "str", "constrained-str", "constrained-int")
OBJECTS = ("NodeRange",)
"""What pydantic adds to a path for the members of a union."""


class Problem(NamedTuple):
    """One validation error. `path` is written as in `kubectl`'s messages: `spec.data.train[0].uri`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ManifestError(ValueError):
    """The manifest is not valid; holds every problem that was found."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """Reads YAML as kubectl does: 1e-4 is a number, and duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
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
    """Returns the FineTuneJob in a YAML text. Raises ManifestError if there is none, or more than one."""
    try:
        documents = yaml_text.documents(text, _Loader)
    except yaml_text.YamlError as error:
        raise ManifestError((Problem("", f"not valid YAML: {error}"),)) from error
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == KIND]
    if len(jobs) == 1:
        return jobs[0]
    if not jobs and len(documents) == 1 and isinstance(documents[0], dict):
        return documents[0]
    raise ManifestError((Problem("", f"the file must contain exactly one {KIND}, but contains {len(jobs)}"),))


def load(source: Path | str, *, given: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> FineTuneJob:
    """Reads a typed job from a file or from YAML text, after `given` has changed it. Raises ManifestError, which lists
    every problem."""
    if isinstance(source, Path):
        try:
            source = source.read_text(encoding="utf-8")
        except OSError as error:
            raise ManifestError((Problem("", f"cannot read {source}: {error.strerror}"),)) from error
        except UnicodeDecodeError as error:
            raise ManifestError((Problem("", f"{source} is not UTF-8 text"),)) from error
    raw = given(parse(source))
    if problems := validate(raw):
        raise ManifestError(problems)
    return FineTuneJob.model_validate_json(json.dumps(raw))


def validate(raw: dict[str, Any], old: dict[str, Any] | None = None) -> tuple[Problem, ...]:
    """Returns every problem of a manifest; with `old`, also of the update. Empty if the API server would accept it."""
    problems = [*_head(raw), *_unknown(raw, FineTuneJob, "")]
    problems += _structure(raw)
    if not problems:
        problems += _broken(NAME_RULES, raw, old, "")
        problems += (Problem(*each) for each in duplicates(raw["spec"], FineTuneJobSpec, "spec"))
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
    """For an int-or-string: the error that applies to the type that was given."""
    kinds = {int: ("int", "constrained-int"), str: ("str", "constrained-str")}.get(type(details[0]["input"]), ())
    neither = {**details[0], "type": "int_or_string"} if len(details) > 1 else details[0]
    return next((detail for detail in details if detail["loc"][-1] in kinds), neither)


def _of_the_other_kind(detail: Any) -> bool:
    """For a number or object: an error about the type that was not given is of no use."""
    given_object = isinstance(detail["input"], dict)
    below = detail["loc"][-1]
    return (below in SCALARS and given_object) or (below in OBJECTS and not given_object)


def _path(location: list[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _told(detail: Any) -> str:
    """Returns a readable message for a validation error of pydantic."""
    context, given = detail.get("ctx", {}), detail.get("input")
    kinds = {dict: "an object", list: "a list", type(None): "null"}
    shown = kinds.get(type(given)) or redact(json.dumps(given, ensure_ascii=False))
    match detail["type"]:
        case "int_or_string":
            return f"must be an integer or a string, not {shown}" + (" (quote it)" if isinstance(given, float) else "")
        case "missing":
            return "is required"
        case "literal_error":
            return f"must be one of {context['expected'].replace(chr(39), '')}, not {shown}"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            sign = {
                "greater_than_equal": "at least",
                "greater_than": "greater than",
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
            return f"{shown} does not have the form {accepted_form(context['pattern'])}" + suggest.uri(
                given, context["pattern"]
            )
        case "int_type" | "int_from_float":
            return f"must be an integer, not {shown}"
        case "float_type":
            return f"must be a number, not {shown}"
        case "bool_type":
            return f"must be a boolean (true or false), not {shown}"  # words: allow true or false
        case "string_type":
            return f"must be a string, not {shown} (quote it)"
        case "tuple_type" | "list_type":
            return f"must be a list, not {shown}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be an object, not {shown}" + _typed(detail, given)
        case "value_error":
            return str(context["error"])
        case _:
            return str(detail["msg"])


def _typed(detail: Any, given: Any) -> str:
    """Suggests an object for `method: lora`, as other tools write it."""
    kinds = ("method", "strategy")
    return f"; did you mean {{type: {given}}}?" if isinstance(given, str) and detail["loc"][-1] in kinds else ""


def accepted_form(pattern: str) -> str:
    """Describes what a pattern accepts, for messages."""
    from . import durations, fields, uris

    known = {
        uris.MODEL: "hf://org/name, s3://bucket/folder, gs://…, az://…, pvc://claim/folder or file:///folder",
        uris.DATA: "s3://bucket/path, gs://…, az://…, pvc://claim/path, file:///path or hf://datasets/org/name/path",
        uris.OUTPUT: "s3://bucket/path, gs://…, az://…, pvc://claim/path or file:///path",
        durations.PATTERN: "90s, 10m, 24h or 7d",
        fields.DNS_LABEL: "of a DNS label: a-z, 0-9 and -",
        fields.DNS_NAME: "of a Kubernetes name: a-z, 0-9, - and .",
        fields.CONTROLLER_NAME: "example.com/name",
        fields.ENV_NAME: "of a variable name: letters, digits and _, not starting with a digit",
        fields.MOUNT_PATH: "of an absolute path such as /data, without spaces and :",
        fields.QUANTITY: "2, 500m or 4Gi",
        fields.TERM: "of text without spaces around it",
    }
    lower = "; bucket names in lower case" if pattern in (uris.MODEL, uris.DATA, uris.OUTPUT) else ""
    return known.get(pattern, pattern) + lower


def unknown_fields(spec: dict[str, Any]) -> Iterator[Problem]:
    """Yields the fields of a spec that this version does not know."""
    yield from _unknown(spec, FineTuneJobSpec, "spec")


def _unknown(raw: Any, model: type[ApiModel], path: str) -> Iterator[Problem]:
    """Yields fields that no model has, with the most similar name that exists."""
    if not isinstance(raw, dict):
        return
    fields = fields_of(model)
    for key, value in raw.items():
        where = f"{path}.{key}" if path else str(key)
        if path in ("metadata",) or (key == "status" and not path):
            continue
        if key not in fields:
            near = suggest.field(str(key), fields)
            yield Problem(where, "unknown field" + (f"; did you mean {near}?" if near else ""))
            continue
        yield from _unknown_below(value, fields[key], where)


def _unknown_below(value: Any, info: FieldInfo, path: str) -> Iterator[Problem]:
    model = model_in(info.annotation)
    if model is None:
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(item, model, f"{path}[{index}]")
    else:
        yield from _unknown(value, model, path)


def _rules(model: type[ApiModel], new: Any, old: Any, path: str) -> Iterator[Problem]:
    """Checks the rules of a model and of all nested models. List items have no old value, as in CEL on atomic lists."""
    if not isinstance(new, dict):
        return
    old = old if isinstance(old, dict) else None
    fixed = [rule for rule in model.RULES if rule.on_update_only]
    yield from _broken(tuple(rule for rule in model.RULES if rule not in fixed), new, old, path)
    if old is not None:
        yield from _broken(tuple(fixed), ordered(new, model), ordered(old, model), path)
    for name, info in model.model_fields.items():
        key = info.alias or name
        below = model_in(info.annotation)
        if below is None or key not in new:
            continue
        if isinstance(new[key], list):
            for index, item in enumerate(new[key]):
                yield from _rules(below, item, None, f"{path}.{key}[{index}]")
        else:
            yield from _rules(below, new[key], (old or {}).get(key), f"{path}.{key}")


def _broken(rules: tuple[Rule, ...], new: dict[str, Any], old: dict[str, Any] | None, path: str) -> Iterator[Problem]:
    for rule in rules:
        if not rule.holds(new, old):
            yield Problem(path, rule.message)


def _all_rules(model: type[ApiModel]) -> Iterator[Rule]:
    yield from model.RULES
    for info in model.model_fields.values():
        if (below := model_in(info.annotation)) is not None:
            yield from _all_rules(below)


JUDGED_BY_US = frozenset(rule.message for rule in _all_rules(FineTuneJobSpec) if not rule.cel)
"""Messages of rules that the API server cannot check: the operator rejects these manifests."""
