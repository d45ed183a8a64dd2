"""docs/models.md says what was run: by these versions, on enough families, and a part of it again here."""

from __future__ import annotations

import json

import peft
import pytest
import transformers

from finetune_trainer.planning.suits import KNOWN
from tests.matrix.cells import METHODS, cell
from tests.matrix.table import PAGE, RESULTS, page
from tests.support.model_families import FAMILIES

RESULT = json.loads(RESULTS.read_text())
AGAIN = [("llama", "full"), ("mamba", "lora"), ("jamba", "dora"), ("opt", "prefix"), ("gemma4_text", "prompt")]


def test_the_page_is_made_of_the_results() -> None:
    assert page(RESULT) == PAGE.read_text(), "make generate writes it"


def test_the_results_are_of_the_libraries_that_are_used() -> None:
    told = RESULT["transformers"], RESULT["peft"]
    assert told == (transformers.__version__, peft.__version__), "make proof runs them again"


def test_every_method_was_run_on_many_families() -> None:
    assert len(RESULT["families"]) >= 35
    assert set(RESULT["families"]) <= set(FAMILIES)
    assert all(list(cells) == list(METHODS) for cells in RESULT["families"].values())


def test_nothing_fails_that_is_not_refused_by_name() -> None:
    results = RESULT["families"].items()
    failing = [
        f"{family} {name}" for family, cells in results for name, one in cells.items() if one["result"] == "fails"
    ]
    assert not failing


@pytest.mark.parametrize("family", KNOWN)
def test_families_that_are_not_asked_are_trained_by_every_method(family: str) -> None:
    assert [name for name, one in RESULT["families"][family].items() if one["result"] != "works"] == []


@pytest.mark.parametrize(("family", "method"), AGAIN)
def test_a_part_of_it_again(family: str, method: str) -> None:
    assert cell(family, method) == RESULT["families"][family][method]
