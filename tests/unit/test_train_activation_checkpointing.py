"""Activation checkpointing: the same losses and weights to the bit, less kept in between, refusals that say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Adapter, Lora, Method, Partial, Prompt
from finetune_trainer.methods.needs import check_recompute
from finetune_trainer.train.activation_checkpointing import recompute_blocks
from tests.support.training import Knobs, Run, largest_difference, make_run, network, replace

METHODS = [
    Method(type="full"),
    Method(type="lora", lora=Lora(rank=4)),
    Method(type="lora", lora=Lora(rank=4, dropout=0.2)),
    Method(type="dora", dora=Lora(rank=4)),
    Method(type="partial", partial=Partial(layers=1)),
    Method(type="adapter", adapter=Adapter(bottleneck=4)),
    Method(type="prompt", prompt=Prompt(virtual_tokens=4)),
]


def _recomputed(folder: Path, knobs: Knobs) -> Run:
    run = make_run(folder, knobs)
    assert recompute_blocks(run.net, lowest=run.attached.lowest_layer) > 0
    return run


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "rows"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.type + ("-dropout" if m.lora and m.lora.dropout else ""))
def test_the_steps_are_the_same_to_the_bit(tmp_path: Path, method: Method, packing: bool) -> None:
    knobs = Knobs(steps=4, method=method, packing=packing)
    plain, again = make_run(tmp_path / "plain", knobs), _recomputed(tmp_path / "again", knobs)
    left, right = plain.finish(), again.finish()
    assert [point.loss for point in left.curve] == [point.loss for point in right.curve]
    assert largest_difference(plain.tensors(), again.tensors()) == 0


def test_so_are_those_of_cheap_products(tmp_path: Path) -> None:
    """Whose weights are copied in both passes."""

    def cheap(run: Run) -> Run:
        return replace(run, trainer=replace(run.trainer, model=replace(run.trainer.model, autocast=torch.bfloat16)))

    knobs = Knobs(steps=4, method=Method(type="full"))
    plain, again = cheap(make_run(tmp_path / "plain", knobs)), cheap(_recomputed(tmp_path / "again", knobs))
    left, right = plain.finish(), again.finish()
    assert [point.loss for point in left.curve] == [point.loss for point in right.curve]
    assert largest_difference(plain.tensors(), again.tensors()) == 0


def test_blocks_keep_their_input_alone() -> None:
    """Of what autograd saves between the passes: a fifth is left, with 6 blocks."""

    def kept(net: torch.nn.Module) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net.base_model(torch.arange(64)[None], use_cache=False)  # type: ignore[operator]
        return sum(size for at, size in seen.items() if at not in weights)

    plain, again = network(layers=6).train(), network(layers=6).train()
    recompute_blocks(again, lowest=0)
    assert kept(again) < 0.2 * kept(plain)


def test_evaluation_and_frozen_blocks_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(layers=3)
    passed: list[int] = []
    for number, block in enumerate(net.base_model.layers):  # type: ignore[union-attr, arg-type]
        block.mlp.register_forward_pre_hook(lambda *_, number=number: passed.append(number))
    assert recompute_blocks(net, lowest=1) == 2
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(".layers.0." not in name and "embed" not in name)
    tokens = torch.arange(6)[None]
    net.train()(tokens, use_cache=False).logits.sum().backward()
    assert sorted(passed) == [0, 1, 1, 2, 2]
    passed.clear()
    with torch.no_grad():
        net(tokens, use_cache=False)
    assert passed == [0, 1, 2]


REFUSED = [
    ("prefix", False, "method.type prefix: its keys and values"),
    ("probe", False, "method.type probe: it computes no gradients"),
    ("lora", True, "training.compile"),
]


@pytest.mark.parametrize(("method", "compiled", "words"), REFUSED, ids=[row[2][:20] for row in REFUSED])
def test_what_cannot_run_again_is_refused_with_the_reason(method: str, compiled: bool, words: str) -> None:
    with pytest.raises(FinetuneError, match=words) as error:
        check_recompute(Method.model_validate({"type": method}, strict=False), compiled=compiled)
    assert error.value.reason is Reason.InvalidSpec


def test_all_others_are_let_through() -> None:
    for method in METHODS:
        check_recompute(method)
