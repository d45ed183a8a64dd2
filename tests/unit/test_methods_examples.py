"""Every method has an example, and the example's settings fit a model."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from finetune_api.methods import AUTO, TRAITS, Method
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.methods.base import Base
from finetune_trainer.methods.registry import METHODS, method_of
from tests.support.documents import ROOT
from tests.support.tiny_model import tiny_model

EXAMPLES = {path.stem.removeprefix("method-"): path for path in sorted((ROOT / "examples").glob("method-*.yaml"))}


def spec(path: Path) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(yaml.safe_load(path.read_text())["spec"], strict=False)


def test_every_method_has_an_example_and_a_page() -> None:
    known = set(get_args(Method.model_fields["type"].annotation)) - {AUTO}  # docs/ladder.md
    assert known == METHODS.keys() == {*EXAMPLES, "lora"}  # that of lora is sentiment-lora.yaml
    text = (ROOT / "docs" / "methods.md").read_text()
    assert {method for method in known if f"| `{method}` |" not in text} == set()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_settings_of_an_example_fit_a_model(tmp_path: Path, kind: str) -> None:
    made = spec(EXAMPLES[kind])
    assert made.method.type == kind
    assert made.output.merged is TRAITS[kind].mergeable
    if made.method.is_open:
        made = made.model_copy(update={"method": Method.model_validate({"type": "partial", "partial": {"layers": 1}})})
    from transformers import LlamaForCausalLM

    folder = tiny_model(tmp_path)
    attached = method_of(made.method).attach(
        LlamaForCausalLM.from_pretrained(folder), seed=1, base=Base("org/tiny", torch.float32, folder=folder)
    )
    assert bool(attached.trainable) is TRAITS[kind].steps
