"""docs/evaluation.md explains each number that status.evaluation, the report and `finetune compare` print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from finetune_api.generation import GenerationMetric
from finetune_api.measurements import Evaluation
from finetune_trainer.cli.outputs import Comparison
from finetune_trainer.report.record import ReliabilityPoint, SliceAgainst
from tests.support.documents import ROOT

PAGE = (ROOT / "docs" / "evaluation.md").read_text()
NAMES = PAGE.partition("## Names")[2].partition("\n## ")[0]


def numbers(model: type[BaseModel]) -> Iterator[str]:
    """Names of all fields with a number, in JSON, of the model and of those inside."""
    for name, field in model.model_fields.items():
        kinds = set(leaves(field.annotation))
        if kinds & {int, float}:
            yield field.alias or name
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind)


def leaves(annotation: Any) -> Iterator[Any]:
    inside = get_args(annotation)
    if not inside:
        yield annotation
    for each in inside:
        yield from leaves(each)


@pytest.mark.parametrize("model", [Evaluation, Comparison, ReliabilityPoint, SliceAgainst])
def test_each_number_has_a_name_and_a_paragraph(model: type[BaseModel]) -> None:
    named = {part for quoted in re.findall(r"`([^`]+)`", NAMES) for part in quoted.split(".")}
    assert set(numbers(model)) - named == set()


def test_metrics_of_generated_text_have_a_paragraph_with_a_formula() -> None:
    for metric in get_args(GenerationMetric):
        assert re.search(rf"^\*\*{metric}\.\*\*(.+\n)+\n    \S", PAGE, re.MULTILINE), metric


def test_each_paragraph_that_explains_a_number_is_on_the_page() -> None:
    heads = re.findall(r"^#+ (.*)$|^\*\*([^*]+?)\.?\*\*", PAGE, re.MULTILINE)
    there = {part.strip() for pair in heads for each in pair for part in (each, *each.split(","))}
    rows = re.findall(r"^\|.*\| ([^|]+) \|$", NAMES, re.MULTILINE)[1:]
    assert len(rows) >= 15
    for cell in rows:
        parts = {cell} if cell in there else {each.strip() for each in cell.split(",")}
        assert parts <= there, cell
