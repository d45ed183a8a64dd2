"""Each metric of evaluation.generate has a record, a name for readers, and a paragraph of docs/evaluation.md."""

from __future__ import annotations

from typing import get_args

import pytest

from finetune_api.generated_text import Figure
from finetune_api.generation import GenerationMetric
from finetune_trainer.report.generated import WORDS
from finetune_trainer.transfer.generated.scores import METRICS
from tests.support.documents import ROOT

PAGE = (ROOT / "docs" / "evaluation.md").read_text()
NAMES = get_args(GenerationMetric)


def test_every_metric_has_a_record_and_a_name_for_readers() -> None:
    assert tuple(METRICS) == NAMES == tuple(WORDS)
    assert [metric.measure.name for metric in METRICS.values()] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_explained_with_its_formula(name: str) -> None:
    _, _, after = PAGE.partition(f"\n**{name}.**")
    assert after, "no paragraph"
    assert "\n    " in after.partition("\n**")[0], "no formula"


@pytest.mark.parametrize("figure", get_args(Figure))
def test_a_figure_of_the_collapse_check_is_explained(figure: str) -> None:
    assert f"**{figure}" in PAGE or f", {figure}" in PAGE
