"""Each key of spec.regularization has a record, a section of docs/pitfalls.md, an example and a file of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from finetune_api.regularization import TERMS, Regularization, TermTraits
from finetune_api.strategy import SHARDED

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pitfalls.md").read_text()
FIELDS = {field.alias or name for name, field in Regularization.model_fields.items()}


def test_every_key_has_a_record() -> None:
    assert set(TERMS) == FIELDS


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_a_term_is_complete(term: TermTraits) -> None:
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in term.name)
    assert (ROOT / "trainer" / "finetune_trainer" / "regularization" / f"{snake}.py").is_file()
    assert f"    {term.name}: {{" in PAGE, "the lines of a manifest"
    assert term.title
    assert term.unit
    told = dict(Regularization.model_validate({term.name: {}}).lines())
    assert list(told) == [term.title]
    for strategy in SHARDED:
        assert strategy in term.sharded or f"`{strategy}` is refused" in PAGE


def test_every_term_is_in_an_example() -> None:
    used: set[str] = set()
    for file in (ROOT / "examples").glob("*.yaml"):
        used |= set((yaml.safe_load(file.read_text())["spec"].get("regularization") or {}).keys())
    assert used == set(TERMS)
