"""The committed CRD is the generated one, and it is structural and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from finetune_api import lint, schema
from finetune_api.base import ApiModel
from finetune_api.spec import FineTuneJobSpec

CRD = Path(__file__).parents[2] / "crds" / "finetunejobs.finetune.dev.yaml"


def test_the_committed_file_is_the_generated_one() -> None:
    assert CRD.read_text() == schema.crd_yaml(), "run: make generate"


def test_the_crd_is_structural_and_bounded() -> None:
    assert lint.problems(schema.crd()) == []


def test_it_stays_far_below_what_client_side_apply_can_carry() -> None:
    """It puts the object into an annotation, as JSON; annotations have 256 KiB together."""
    assert len(json.dumps(schema.crd())) < 128 * 1024


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"a": {"type": "string"}}, "a string without maxLength"),
        (
            {"a": {"type": "array", "items": {"type": "string", "maxLength": 1}, "maxItems": 1}},
            "without x-kubernetes-list-type",
        ),
        (
            {"a": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 1}}},
            "a map without maxProperties",
        ),
        (
            {"a": {"anyOf": [{"type": "string"}, {"type": "null"}], "type": "string", "maxLength": 1}},
            "anyOf is allowed for",
        ),
        ({"a": {"$ref": "#/x", "type": "object"}}, "$ref is not allowed"),
        ({"a": {"type": "integer", "exclusiveMinimum": 0, "maximum": 1}}, "must be a boolean"),
        ({"a": {"const": 1, "type": "integer", "maximum": 1}}, "const is not allowed"),
        ({"a": {}}, "no type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_linter_finds(properties: dict[str, Any], says: str) -> None:
    crd = schema.crd()
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = {
        "type": "object",
        "properties": properties,
    }

    assert any(says in problem for problem in lint.problems(crd))


def test_a_printer_column_must_lead_somewhere() -> None:
    crd = schema.crd()
    crd["spec"]["versions"][0]["additionalPrinterColumns"].append(
        {"name": "X", "jsonPath": ".status.nowhere", "type": "string"}
    )

    assert any("printer column X" in problem for problem in lint.problems(crd))


class Inner(ApiModel):
    """Said of the class.

    Not said to users.
    """

    half: float | None = Field(None, gt=0, le=0.5, description="A share.")


class Outer(ApiModel):
    inner: Inner | None = None
    size: int | str = Field("auto", union_mode="left_to_right")
    names: tuple[str, ...] = Field((), max_length=4, json_schema_extra={"x-kubernetes-list-type": "set"})


def test_what_pydantic_says_is_translated() -> None:
    assert schema.structural(Outer) == {
        "type": "object",
        "properties": {
            "inner": {
                "type": "object",
                "description": "Said of the class.",
                "properties": {
                    "half": {
                        "type": "number",
                        "minimum": 0,
                        "exclusiveMinimum": True,
                        "maximum": 0.5,
                        "description": "A share.",
                    }
                },
            },
            "size": {
                "x-kubernetes-int-or-string": True,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "description": "Default auto.",
            },
            "names": {"type": "array", "items": {"type": "string"}, "maxItems": 4, "x-kubernetes-list-type": "set"},
        },
    }


def test_what_a_crd_cannot_say_is_refused() -> None:
    class Mixed(ApiModel):
        value: int | bool

    with pytest.raises(ValueError, match=r"Mixed\.value"):
        schema.structural(Mixed)


def test_every_rule_of_updates_is_told_once_the_spec_may_have_changed() -> None:
    root = schema.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    (told,) = (rule for rule in root["x-kubernetes-validations"] if "oldSelf" in rule["rule"])

    assert told["rule"].startswith(f"{schema.STATUS_IS_WRITTEN} || self.spec == oldSelf.spec || ")
    for rule in FineTuneJobSpec.RULES:
        if rule.on_update_only:
            assert rule.message in told["messageExpression"]
