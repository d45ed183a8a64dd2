"""Every method answers every question: what is added without one of its parts turns a test of this file red.

docs/extending.md lists the parts of a method in the order of these tests.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from finetune_api import manifest
from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import AUTO, DEFAULT, TRAITS, Method
from finetune_api.methods.traits import Rate, Sharding, Traits
from finetune_api.strategy import SHARDED
from finetune_trainer.methods.base import FitsWithoutSteps, HasPrompt, Merges, Scales
from finetune_trainer.methods.needs import check_strategy
from finetune_trainer.methods.registry import METHODS, method_of
from finetune_trainer.planning.footprints import Footprint, Kept, block_bytes, footprint_of
from finetune_trainer.planning.model import read_shape
from finetune_trainer.report.card import model_card
from finetune_trainer.train.optimizer import default_peak
from tests.support.documents import ROOT
from tests.support.manifests import BASE as MANIFEST
from tests.support.manifests import changed
from tests.support.small_report import record
from tests.support.training import BASE, network

EVERY = pytest.mark.parametrize("kind", TRAITS)
STEPS = pytest.mark.parametrize("kind", [name for name, traits in TRAITS.items() if traits.steps])
PAGE = (ROOT / "docs" / "methods.md").read_text()


def method(kind: str) -> Method:
    """With its defaults; a number in place of what a run measures."""
    made = Method.model_validate({"type": kind})
    return made.settled(1) if made.is_open else made


def tiny() -> nn.Module:
    return network(hidden_size=64, intermediate_size=192)


def test_manifest_and_trainer_know_the_same_methods() -> None:
    assert list(get_args(Method.model_fields["type"].annotation)) == [*TRAITS, AUTO]
    assert list(TRAITS) == list(METHODS)
    assert DEFAULT in TRAITS
    with_settings = {name: traits.settings for name, traits in TRAITS.items() if traits.settings}
    fields = {name: get_args(field.annotation)[0] for name, field in Method.model_fields.items() if name != "type"}
    assert fields == with_settings


@EVERY
def test_has_an_example(kind: str) -> None:
    """tests/unit/test_methods_examples.py runs its settings."""
    path = ROOT / "examples" / ("sentiment-lora.yaml" if kind == DEFAULT else f"method-{kind}.yaml")
    assert manifest.validate(manifest.parse(path.read_text())) == ()


@EVERY
def test_has_a_row_in_the_docs_and_one_for_its_default_rate(kind: str) -> None:
    assert f"\n| `{kind}` |" in PAGE
    rates = PAGE.partition("The default learning rates are from")[2].partition("\n\n")[2].partition("\n\n")[0]
    named = {name for row in rates.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert (kind in named) is TRAITS[kind].steps


@STEPS
def test_has_a_default_rate(kind: str) -> None:
    assert 1e-5 < default_peak(method=kind, hidden_size=2048) < 1e-1


@EVERY
def test_a_method_without_steps_has_no_rate_and_every_other_has_one(kind: str) -> None:
    assert (TRAITS[kind].rate is not None) is TRAITS[kind].steps


@EVERY
def test_the_card_loads_what_the_method_writes(kind: str, tmp_path: Path) -> None:
    """The library that is named is the one whose format lies in the folder."""
    attached = method_of(method(kind)).attach(tiny(), seed=1, base=BASE)
    assert (attached.kind == "model") is TRAITS[kind].trains_the_model
    if isinstance(attached, FitsWithoutSteps):
        assert TRAITS[kind].library == "finetune-operator"
    else:
        attached.export(tmp_path)
        config = tmp_path / "adapter_config.json"
        written = json.loads(config.read_text()) if config.is_file() else {}
        own = "finetune-operator" if written else "transformers"
        assert TRAITS[kind].library == ("peft" if "peft_type" in written else own)
    card = model_card(record().model_copy(update={"plan": record().plan.model_copy(update={"method": kind})}))
    loader = {"peft": "from peft import", "finetune-operator": f"from finetune_trainer.methods.{kind} import load"}
    assert loader.get(TRAITS[kind].library, "from transformers import") in card


@EVERY
@pytest.mark.parametrize("strategy", ["ddp", *get_args(Sharding)])
def test_every_strategy_works_or_is_refused_at_validate(kind: str, strategy: str) -> None:
    """By the API server and `finetune validate`, and by a run, for which `auto` may have chosen."""
    assert get_args(Sharding) == SHARDED
    works = strategy == "ddp" or strategy in TRAITS[kind].shards
    data = {"spec.data.format": "classification"} if TRAITS[kind].labels_only else {}
    asked = changed(MANIFEST, {"spec.method": {"type": kind}, "spec.strategy": {"type": strategy}, **data})
    problems = [str(problem) for problem in manifest.validate(asked)]
    assert (problems == []) is works, problems
    if works:
        check_strategy(method(kind), strategy)
        return
    with pytest.raises(FinetuneError) as raised:
        check_strategy(method(kind), strategy)
    assert raised.value.reason is Reason.InvalidSpec
    assert raised.value.hint


@EVERY
def test_its_traits_are_what_it_can_do(kind: str) -> None:
    traits = TRAITS[kind]
    attached = method_of(method(kind)).attach(tiny(), seed=1, base=BASE)
    assert isinstance(attached, HasPrompt) is (traits.virtual is not None)
    assert isinstance(attached, FitsWithoutSteps) is (not traits.steps)
    assert isinstance(attached, Merges) is traits.mergeable
    assert isinstance(attached, Scales) is traits.scalable
    assert bool(attached.trainable) is traits.steps
    assert (method(kind).virtual_tokens > 0) is (traits.virtual is not None)
    assert (method(kind).low_rank is not None) is traits.low_rank


def test_a_footprint_says_everything_it_is_asked() -> None:
    for kind in TRAITS:
        assert isinstance(footprint_of(method(kind)), Footprint)


@STEPS
def test_activations_are_counted_as_autograd_keeps_them(kind: str, tmp_path: Path) -> None:
    """Bytes of one more token in float32, beyond those of a frozen model that only passes gradients on: no less than a
    tenth too few (and a fiftieth of the frozen model), and no more than twice as many. What is kept whatever the number
    of tokens is workspace."""
    made, net = method(kind), tiny()
    net.save_pretrained(tmp_path)  # type: ignore[operator]
    shape, nothing = read_shape(tmp_path), np.zeros(0, np.int64)
    frozen = shape.layers * block_bytes(shape, Kept(attention=False, mlp=False, added=0), 4, trains=False)
    passing = _saved_by_a_token(net.requires_grad_(False), nothing, whole=True)

    attached = method_of(made).attach(net, seed=1, base=BASE)
    footprint, prompt = footprint_of(made), attached.ids if isinstance(attached, HasPrompt) else nothing
    measured = _saved_by_a_token(net, prompt, whole=footprint.layers(shape, made) == shape.layers)
    kept = footprint.kept(shape, made, 4, row=0)
    block = block_bytes(shape, kept, 4, trains=made.trains_the_model)
    planned = footprint.layers(shape, made) * block + kept.added + kept.around
    allowed = 0.1 * abs(planned - frozen) + 0.02 * frozen
    more = (planned - frozen) - (measured - passing)
    assert -allowed <= more <= abs(measured - passing) + allowed, f"{measured - passing} bytes are kept"


def _saved_by_a_token(net: nn.Module, prompt: Any, *, whole: bool) -> float:
    """`whole`: the first block passes gradients on too, as any block in the middle does."""
    few, many = (_saved(net, prompt, tokens, whole=whole) for tokens in (64, 96))
    return (many - few) / 32


def _saved(net: nn.Module, prompt: Any, tokens: int, *, whole: bool) -> int:
    """Bytes that a pass over one row keeps for its backward, without parameters, and without masks of pairs of tokens,
    which the plan counts by the length of a row."""
    known = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not (tensor.ndim == 4 and tensor.shape[1] == 1 and tensor.shape[2] == tokens):
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no place is used twice
        return tensor

    row = torch.from_numpy(np.concatenate([prompt, np.arange(tokens - len(prompt)) % 90])).long()[None]
    body: Any = next(module for module in net.modules() if type(module).__name__ == "LlamaModel")
    net.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embedded = body.embed_tokens(row)
        if whole and not embedded.requires_grad:
            embedded.requires_grad_(True)
        ended = body(inputs_embeds=embedded, use_cache=False)
    assert ended.last_hidden_state.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in known)


@pytest.mark.parametrize("left_out", ["rate", "library", "shards", "trains", "settings", "summary", "name"])
def test_a_record_without_an_answer_cannot_be_made(left_out: str) -> None:
    given = {field.name: getattr(TRAITS["lora"], field.name) for field in dataclasses.fields(Traits)}
    Traits(**given)
    with pytest.raises(TypeError, match=left_out):
        Traits(**{name: value for name, value in given.items() if name != left_out})


def test_activations_cannot_be_left_out_of_a_footprint() -> None:
    with pytest.raises(TypeError, match="added"):
        Kept(attention=True, mlp=True)  # type: ignore[call-arg]
    left_out = type("Incomplete", (Footprint,), {"trained": lambda *_: 1, "workspace": lambda *_: 0})
    with pytest.raises(TypeError, match=r"kept.*operations"):
        left_out()


@pytest.mark.parametrize("given", [{}, {"over_full": 1.0, "fixed": 1e-3}])
def test_a_rate_is_one_thing_or_the_other(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="either"):
        Rate(**given)


def test_no_other_file_asks_for_a_method_by_its_name_or_class() -> None:
    """What a method is said to be is in its traits, and what it can do is a protocol of methods.base."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("crds/finetune_api", "operator/finetune_operator", "trainer/finetune_trainer")
        for path in sorted((ROOT / package).rglob("*.py"))
        if not _is_of_one_method(path)
        for line in _questions(ast.parse(path.read_text()))
    ]
    assert found == []


_CLASSES = re.compile(r"[a-z]Attached\b|\b(QLora|Dora|Probed|Bottleneck)\b")
"""Of one method alone, in the trainer."""


def _is_of_one_method(path: Path) -> bool:
    return path.stem in TRAITS and path.parent.name in ("methods", "footprints")


def _questions(tree: ast.AST) -> Iterator[int]:
    """Lines that compare a method or its type with names, or ask whether something is of a method's class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            words = {one.value for side in sides for one in ast.walk(side) if isinstance(one, ast.Constant)}
            asked = any("method" in ast.unparse(side) for side in sides)
            if asked and words & TRAITS.keys():
                yield node.lineno
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "isinstance"
            and _CLASSES.search(ast.unparse(node.args[1]))
        ):
            yield node.lineno
