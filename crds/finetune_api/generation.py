"""FineTuneJob.spec.evaluation.generate: what base and tuned model answer to held-out prompts, and how it is scored."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field

from .base import ApiModel, Rule
from .fields import LIST_MAP, PRESERVE
from .methods import TRAITS, type_of

GenerationMetric = Literal["exactMatch", "rougeL", "jsonValid", "jsonSchema", "regex", "stops", "length"]

LARGEST_SCHEMA = 16 * 1024
"""Bytes of JSON: the schema travels in an annotation of each pod."""


def _small(schema: dict[str, Any]) -> dict[str, Any]:
    if (size := len(json.dumps(schema).encode())) > LARGEST_SCHEMA:
        raise ValueError(f"must have at most {LARGEST_SCHEMA} bytes of JSON, not {size}")
    return schema


def _lists(new: dict[str, Any], metric: str) -> bool:
    metrics = new.get("metrics")
    return isinstance(metrics, list) and metric in metrics


def _goes_with(metric: str, field: str) -> Rule:
    """A field that one metric needs, and that is for it alone."""
    return Rule(
        cel=f"has(self.{field}) == (has(self.metrics) && self.metrics.exists(m, m == '{metric}'))",
        message=f"metrics {metric} and {field} belong together: set both, or neither",
        holds=lambda new, _: (field in new) == _lists(new, metric),
    )


class Generate(ApiModel):
    max_new_tokens: int = Field(
        128, ge=1, le=4096, description="The most tokens of one answer. The models stop earlier at the end token."
    )
    max_rows: int = Field(
        128,
        ge=20,
        le=2000,
        description="The most prompts to answer: a sample of the rows of data.test, else of the validation rows, by "
        "content and training.seed.",
    )
    metrics: Annotated[tuple[GenerationMetric, ...], Field(max_length=len(get_args(GenerationMetric)))] = Field(
        ("exactMatch", "stops"),
        description="Scores of the greedy answers. exactMatch: equal to the reference. rougeL: longest common "
        "subsequence of words. jsonValid: valid JSON. jsonSchema: valid under schema. regex: pattern matches. stops: "
        "the answer ends by itself. length: tokens. Default exactMatch and stops.",
        json_schema_extra={LIST_MAP: "set"},
    )
    json_schema: Annotated[dict[str, Any], AfterValidator(_small)] | None = Field(
        None,
        alias="schema",
        description="JSON Schema (draft 2020-12) for the metric jsonSchema, at most 16 KiB. References to other "
        "documents are not followed.",
        json_schema_extra={PRESERVE: True},
    )
    pattern: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="Regular expression for the metric regex. It may match anywhere in the answer: begin with ^ and "
        "end with $ to match all of it.",
    )
    samples: int = Field(8, ge=0, le=32, description="Answers of both models that the report shows side by side.")

    RULES: ClassVar[tuple[Rule, ...]] = (_goes_with("jsonSchema", "schema"), _goes_with("regex", "pattern"))


GENERATION_GUARDS = ("collapse", "generation")
"""Keys of spec.guards that judge generated text."""


def asks(spec: dict[str, Any]) -> bool:
    """Whether a manifest needs generated text."""
    guards, evaluation = spec.get("guards"), spec.get("evaluation")
    guarded = isinstance(guards, dict) and any(name in guards for name in GENERATION_GUARDS)
    return guarded or (isinstance(evaluation, dict) and "generate" in evaluation)


_NOT_ASKED = (
    "!((has(self.evaluation) && has(self.evaluation.generate)) || (has(self.guards) && "
    f"({' || '.join(f'has(self.guards.{name})' for name in GENERATION_GUARDS)})))"
)
_WHAT = "evaluation.generate, guards.collapse and guards.generation"
_SILENT = tuple(method.name for method in TRAITS.values() if not method.generates)
"""Methods whose result, or whose form in training, writes no text."""


GENERATION_RULES = (
    Rule(
        cel=f"{_NOT_ASKED} || !has(self.method) || !has(self.method.type) || !(self.method.type in {list(_SILENT)})",
        message=f"{_WHAT} are not supported by method.type {' and '.join(_SILENT)}: remove them, or use another method",
        holds=lambda new, _: not asks(new) or type_of(new) not in _SILENT,
    ),
    Rule(
        cel=f"{_NOT_ASKED} || !has(self.strategy) || !has(self.strategy.type) || self.strategy.type != 'deepspeed'",
        message=f"{_WHAT} are not supported by strategy.type deepspeed: set strategy.type: ddp or fsdp",
        holds=lambda new, _: not asks(new) or (new.get("strategy") or {}).get("type") != "deepspeed",
    ),
)
