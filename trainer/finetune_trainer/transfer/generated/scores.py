"""The metrics of `evaluation.generate.metrics`: one record each, from an answer to a number.

All but `length` are scores from 0 to 1 of which more is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetune_api.failures import FinetuneError, Reason
from finetune_api.generation import Generate, GenerationMetric
from finetune_trainer.statistics import text_scores
from finetune_trainer.statistics.differences import Measure

PATTERN_SECONDS = 5.0
"""A pattern that needs longer for one answer does not match it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    text: str
    reference: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Asked:
    """The settings that scores need, read once. InvalidSpec from the properties for a schema or pattern that is not
    one."""

    settings: Generate

    @cached_property
    def schema(self) -> Any:
        """Without a way to load other documents."""
        import jsonschema
        from referencing import Registry

        schema = self.settings.json_schema or {}
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise FinetuneError(
                Reason.InvalidSpec, f"evaluation.generate.schema is not a JSON Schema: {error.message[:300]}"
            ) from None
        return kind(schema, registry=Registry())

    @cached_property
    def pattern(self) -> Any:
        import regex

        try:
            return regex.compile(self.settings.pattern or "")
        except regex.error as error:
            raise FinetuneError(
                Reason.InvalidSpec, f"evaluation.generate.pattern is not a regular expression: {error}"
            ) from None

    def check(self) -> None:
        """Before anything is measured."""
        if "jsonSchema" in self.settings.metrics:
            _ = self.schema
        if "regex" in self.settings.metrics:
            _ = self.pattern


@dataclass(frozen=True, kw_only=True)
class Metric:
    measure: Measure
    score: Callable[[Answer, Asked], float]


def _schema(answer: Answer, asked: Asked) -> float:
    from referencing.exceptions import Unresolvable

    try:
        return float(asked.schema.is_valid(text_scores.json_of(answer.text)))
    except (ValueError, RecursionError, Unresolvable):
        return 0.0


def _pattern(answer: Answer, asked: Asked) -> float:
    try:
        return float(asked.pattern.search(answer.text.strip(), timeout=PATTERN_SECONDS) is not None)
    except TimeoutError:
        return 0.0


def _share(name: str) -> Measure:
    return Measure(name=name, higher_is_better=True, margin=0.01, unit="share of answers", bounded=True)


METRICS: Mapping[GenerationMetric, Metric] = {
    "exactMatch": Metric(
        measure=_share("exactMatch"), score=lambda answer, _: text_scores.exact_match(answer.text, answer.reference)
    ),
    "rougeL": Metric(
        measure=Measure(name="rougeL", higher_is_better=True, margin=0.01, unit="mean F1", bounded=True),
        score=lambda answer, _: text_scores.rouge_l(answer.text, answer.reference),
    ),
    "jsonValid": Metric(measure=_share("jsonValid"), score=lambda answer, _: text_scores.json_valid(answer.text)),
    "jsonSchema": Metric(measure=_share("jsonSchema"), score=_schema),
    "regex": Metric(measure=_share("regex"), score=_pattern),
    "stops": Metric(measure=_share("stops"), score=lambda answer, _: float(answer.stopped)),
    "length": Metric(
        measure=Measure(name="length", higher_is_better=True, margin=0.0, unit="tokens", judged=False),
        score=lambda answer, _: float(answer.tokens),
    ),
}
