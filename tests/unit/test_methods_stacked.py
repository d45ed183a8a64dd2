"""An earlier adapter, frozen under the one that trains: the reference of a run, and one adapter in what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora as Settings
from finetune_api.methods import Method
from finetune_trainer.methods import merged
from finetune_trainer.methods.base import Base, Continues, Scales, SwitchesOff, UpdatesByProducts
from finetune_trainer.methods.lora import Lora, LoraAttached
from finetune_trainer.methods.registry import method_of
from finetune_trainer.methods.servable import judge
from finetune_trainer.methods.stacked import EARLIER
from finetune_trainer.planning.earlier_adapter import planned_shape
from finetune_trainer.planning.memory import estimate
from tests.support.training import VOCAB, disturb, network

TOKENS = torch.arange(2, 26).reshape(2, 12) % VOCAB
FIRST = Settings(rank=4, alpha=12)
SECONDS = {
    "of one shape": Settings(rank=4, alpha=12),
    "of another rank and scale": Settings(rank=3, alpha=7),
    "of another scale by rank": Settings(rank=4, alpha=8, rs_lora=True),
    "of fewer layers": Settings(rank=2, alpha=4, layers=1),
    "of other matrices": Settings(rank=2, alpha=4, targets="attention"),
    "with dropout": Settings(rank=2, alpha=4, dropout=0.5),
}


def logits(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, cast(Any, net.eval())(input_ids=TOKENS).logits)


def exported(folder: Path, settings: Settings = FIRST, *, kind: str = "Llama") -> tuple[Path, Tensor]:
    """(an adapter that has learned something, the logits with it)."""
    net = network(kind)
    attached = Lora(settings).attach(net, seed=1, base=Base("org/tiny", torch.float32))
    disturb(attached)
    folder.mkdir(parents=True)
    attached.export(folder)
    return folder, logits(net)


def stacked(earlier: Path, settings: Settings, *, kind: str = "Llama") -> tuple[nn.Module, LoraAttached]:
    net = network(kind)
    base = Base("org/tiny", torch.float32, earlier=earlier)
    return net, Lora(settings).attach(net, seed=2, base=base)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
@pytest.mark.parametrize("settings", SECONDS.values(), ids=SECONDS)
def test_one_adapter_on_the_original_base_is_the_model(tmp_path: Path, settings: Settings, kind: str) -> None:
    earlier, before = exported(tmp_path / "earlier", kind=kind)
    net, attached = stacked(earlier, settings, kind=kind)
    torch.testing.assert_close(logits(net), before, atol=2e-6, rtol=0)
    disturb(attached)
    tuned = logits(net)
    assert (tuned - before).abs().max() > 0.01
    attached.export(tmp_path)
    plain = PeftModel.from_pretrained(cast(Any, network(kind)), tmp_path)
    torch.testing.assert_close(logits(cast(nn.Module, plain)), tuned, atol=2e-5, rtol=0)
    assert judge(tmp_path).servable == "lora"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 4 + settings.rank
    assert not config["use_rslora"]


def test_switched_off_it_is_the_earlier_model_and_then_the_original_one(tmp_path: Path) -> None:
    earlier, before = exported(tmp_path / "earlier")
    net, attached = stacked(earlier, FIRST)
    start = logits(net)
    disturb(attached)
    tuned = logits(net)
    assert isinstance(attached, SwitchesOff)
    assert isinstance(attached, Continues)
    with attached.as_base():
        assert torch.equal(logits(net), start)
        torch.testing.assert_close(start, before, atol=2e-6, rtol=0)
    with attached.as_original():
        assert torch.equal(logits(net), logits(network()))
    assert torch.equal(logits(net), tuned)
    assert all(parameter.requires_grad for parameter in attached.trainable.values())


def test_only_the_new_adapter_trains_and_it_begins_as_it_would_alone(tmp_path: Path) -> None:
    earlier, _ = exported(tmp_path / "earlier")
    net, attached = stacked(earlier, FIRST)
    alone = network()
    other = Lora(FIRST).attach(alone, seed=2, base=Base("org/tiny", torch.float32))
    assert list(attached.trainable) == list(other.trainable)
    assert all(torch.equal(attached.trainable[name], other.trainable[name]) for name in other.trainable)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(attached.trainable)
    assert attached.lowest_layer == other.lowest_layer
    assert attached.fused == other.fused > 0


@pytest.mark.parametrize("settings", [FIRST, SECONDS["of other matrices"]], ids=["fused", "some layers"])
def test_gradients_are_those_of_a_base_with_the_earlier_update_in_it(tmp_path: Path, settings: Settings) -> None:
    earlier, _ = exported(tmp_path / "earlier")
    net, attached = stacked(earlier, settings)
    folded = cast(Any, PeftModel.from_pretrained(cast(Any, network()), earlier)).merge_and_unload()
    other = Lora(settings).attach(folded, seed=2, base=Base("org/tiny", torch.float32))
    for each in (attached, other):
        disturb(each)
    for model in (net, folded):
        cast(Any, model)(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for name, parameter in attached.trainable.items():
        torch.testing.assert_close(parameter.grad, other.trainable[name].grad, atol=1e-6, rtol=1e-3)


def test_its_scale_and_its_products_are_those_of_the_new_adapter_alone(tmp_path: Path) -> None:
    """So L2-SP, EWC and the sweep of scales take the earlier model for their start."""
    earlier, _ = exported(tmp_path / "earlier")
    net, attached = stacked(earlier, SECONDS["of another rank and scale"])
    start = logits(net)
    disturb(attached)
    assert isinstance(attached, Scales)
    assert isinstance(attached, UpdatesByProducts)
    assert {product.a.shape[0] for product in attached.products()} == {3}
    for scale in (0.5, 0.0):
        attached.apply_at(scale)
        at_scale = logits(net)
        attached.export(tmp_path)
        plain = PeftModel.from_pretrained(cast(Any, network()), tmp_path)
        torch.testing.assert_close(logits(cast(nn.Module, plain)), at_scale, atol=2e-5, rtol=0)
    torch.testing.assert_close(at_scale, start, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", SECONDS.values(), ids=SECONDS)
def test_what_is_planned_for_it_is_what_it_holds(tmp_path: Path, settings: Settings, dtype: torch.dtype) -> None:
    earlier, _ = exported(tmp_path / "earlier", Settings(rank=4, targets="mlp") if settings.layers else FIRST)
    cast(Any, network()).save_pretrained(tmp_path / "model")
    net = network().to(dtype)
    Lora(settings).attach(net, seed=2, base=Base("org/tiny", dtype, earlier=earlier))
    held = [weight for name, weight in net.named_parameters() if f".{EARLIER}." in name]
    method = Method(type="lora", lora=settings)
    shape = planned_shape(tmp_path / "model", method, earlier)
    assert shape is not None
    assert {weight.dtype for weight in held} == {torch.float32}
    assert shape.frozen_adapter == sum(weight.numel() for weight in held)
    alone = replace(shape, frozen_adapter=0)
    needs = [estimate(each, method, precision="float32", device="cpu", tokens=64) for each in (shape, alone)]
    assert needs[0].weights - needs[1].weights == sum(weight.nbytes for weight in held)
    assert needs[0].optimizer == needs[1].optimizer
    assert planned_shape(tmp_path / "model", Method(type="full"), earlier) == alone


def test_in_four_bits_it_continues_from_an_adapter_of_a_whole_base(tmp_path: Path) -> None:
    """qlora after lora: the base is packed, and both adapters are as they would be on the unpacked values."""
    method: Any = method_of(Method(type="qlora", qlora=SECONDS["of another rank and scale"]))
    wide: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    plain = network(**wide)
    first = Lora(FIRST).attach(plain, seed=1, base=Base("org/tiny", torch.float32))
    disturb(first)
    first.export(tmp_path)
    packed = network(**wide)
    method.quantise(packed, device=torch.device("cpu"))
    alone = logits(packed)
    before = logits(cast(nn.Module, PeftModel.from_pretrained(cast(Any, packed), tmp_path)))
    assert (before - alone).abs().max() > 0.01
    net = network(**wide)
    attached = method.attach(net, seed=2, base=Base("org/tiny", torch.float32, earlier=tmp_path))
    torch.testing.assert_close(logits(net), before, atol=2e-5, rtol=0)
    cast(Any, net)(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == set(attached.trainable)
    disturb(attached)
    tuned = logits(net)
    with attached.as_base():
        torch.testing.assert_close(logits(net), before, atol=2e-5, rtol=0)
    with attached.as_original():
        torch.testing.assert_close(logits(net), alone, atol=0, rtol=0)
    attached.export(tmp_path / "both")
    again = network(**wide)
    method.quantise(again, device=torch.device("cpu"))
    whole = PeftModel.from_pretrained(cast(Any, again), tmp_path / "both")
    torch.testing.assert_close(logits(cast(nn.Module, whole)), tuned, atol=2e-5, rtol=0)


def test_a_merged_model_has_both(tmp_path: Path) -> None:
    earlier, _ = exported(tmp_path / "earlier")
    network().save_pretrained(tmp_path / "base")
    net, attached = stacked(earlier, SECONDS["of another rank and scale"])
    disturb(attached)
    merged.write(attached.changes(), tmp_path / "base", tmp_path / "merged", alive=lambda: None)
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(whole), logits(net), atol=2e-5, rtol=0)


def test_three_tasks_are_one_adapter_still(tmp_path: Path) -> None:
    earlier, _ = exported(tmp_path / "one")
    _, attached = stacked(earlier, FIRST)
    disturb(attached)
    (tmp_path / "two").mkdir()
    attached.export(tmp_path / "two")
    net, third = stacked(tmp_path / "two", Settings(rank=2, alpha=6))
    disturb(third)
    (tmp_path / "three").mkdir()
    third.export(tmp_path / "three")
    assert json.loads((tmp_path / "three" / "adapter_config.json").read_text())["r"] == 10
    plain = PeftModel.from_pretrained(cast(Any, network()), tmp_path / "three")
    torch.testing.assert_close(logits(cast(nn.Module, plain)), logits(net), atol=2e-5, rtol=0)


def _renamed(file: Path) -> None:
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name.replace("q_proj", "other").replace("down_proj", "other")] = tensors.pop(name)
    save_file(tensors, file)


def _wider(file: Path) -> None:
    tensors = load_file(file)
    save_file({name: torch.cat([each, each], dim=1) for name, each in tensors.items()}, file)


@pytest.mark.parametrize(
    ("damage", "words"), [(_renamed, "no layers for 1 of its matrices"), (_wider, "the model takes")]
)
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, damage: Any, words: str) -> None:
    earlier, _ = exported(tmp_path / "earlier")
    damage(earlier / "adapter_model.safetensors")
    with pytest.raises(FinetuneError, match=words) as caught:
        stacked(earlier, FIRST)
    assert caught.value.reason is Reason.ModelUnsupported
    assert "Set model" in caught.value.hint
