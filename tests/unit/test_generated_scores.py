"""Scores of one generated text, against values that others computed or that a person can check."""

from __future__ import annotations

import json

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_api.generation import Generate
from finetune_trainer.statistics.text_scores import exact_match, json_valid, rouge_l
from finetune_trainer.transfer.generated.scores import METRICS, Answer, Asked

SCHEMA = {"type": "object", "required": ["code"], "properties": {"code": {"type": "string", "pattern": "^[A-Z]"}}}


def score(metric: str, text: str, *, stopped: bool = True, **settings: object) -> float:
    asked = Asked(Generate.model_validate_json(json.dumps({"metrics": [metric], **settings})))
    answer = Answer(text=text, reference="Paris", tokens=len(text), stopped=stopped)
    return next(each.score(answer, asked) for name, each in METRICS.items() if name == metric)


def test_rouge_l_is_that_of_googles_rouge_score() -> None:
    """The example in the package's README: 5 words in common, precision 5/8, recall 5/9."""
    text, reference = "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog"
    assert rouge_l(text, reference) == pytest.approx(2 * (5 / 8) * (5 / 9) / (5 / 8 + 5 / 9))
    assert rouge_l(text, reference) == rouge_l(reference, text)


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, section 3
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("", "police", 0.0),
        ("...", "", 1.0),
        ("ÄRZTE, die", "ärzte die", 1.0),
    ],
)
def test_rouge_l(text: str, reference: str, value: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("Paris", 1), (" Paris\n", 1), ("paris", 0), ("Paris.", 0), ("", 0)],
)
def test_exact_match(text: str, value: float) -> None:
    assert exact_match(text, "Paris") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"code": "I21.4"}', 1),
        ("\n[1, 2]\n", 1),
        ("null", 1),
        ('{"code": "I21.4"', 0),
        ("{'code': 1}", 0),
        ('```json\n{"code": 1}\n```', 0),
        ('{"a": NaN}', 0),
        ('{"a": 1} and more', 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_json_valid(text: str, value: float) -> None:
    assert json_valid(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [('{"code": "I21"}', 1), ('{"code": "i21"}', 0), ('{"kode": "I21"}', 0), ("{", 0)]
)
def test_json_schema(text: str, value: float) -> None:
    assert score("jsonSchema", text, schema=SCHEMA) == value


def test_a_reference_to_another_document_is_not_followed() -> None:
    assert score("jsonSchema", "{}", schema={"$ref": "http://127.0.0.1:9/schema.json"}) == 0


@pytest.mark.parametrize(("text", "value"), [("ICD I21.4", 1), ("none", 0)])
def test_regex(text: str, value: float) -> None:
    assert score("regex", text, pattern=r"[A-Z]\d{2}(\.\d)?$") == value


def test_a_pattern_that_takes_too_long_does_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.transfer.generated.scores.PATTERN_SECONDS", 0.01)
    assert score("regex", "a" * 64 + "b", pattern=r"^((a|aa)+)+$") == 0


def test_stops_and_length() -> None:
    assert (score("stops", "x"), score("stops", "x", stopped=False), score("length", "abc")) == (1, 0, 3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metrics": ["jsonSchema"], "schema": {"type": "objekt"}}, "evaluation.generate.schema"),
        ({"metrics": ["regex"], "pattern": "(["}, "evaluation.generate.pattern"),
    ],
)
def test_what_is_neither_schema_nor_pattern_is_refused_before_anything_is_measured(
    settings: dict[str, object], says: str
) -> None:
    with pytest.raises(FinetuneError, match=says) as error:
        Asked(Generate.model_validate_json(json.dumps(settings))).check()
    assert error.value.reason is Reason.InvalidSpec
