"""An adapter at a part of its trained scale: what is measured at each scale is what is exported there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finetune_api.methods import TRAITS, Lora, Method
from finetune_trainer.methods.base import Attached, Scales, SwitchesOff
from finetune_trainer.methods.registry import method_of
from tests.support.training import BASE, disturb, network

SCALABLE = [name for name, traits in TRAITS.items() if traits.scalable]
TOKENS = torch.arange(2, 22)[None]


def attached(name: str, **settings: object) -> tuple[torch.nn.Module, Attached]:
    """At work on a network that 4 bits can hold, with an update that is not zero."""
    net = network(hidden_size=64, intermediate_size=128)
    method = Method(type=name, **{name: Lora(rank=4, **settings)})  # type: ignore[arg-type]
    made = method_of(method).attach(net, seed=1, base=BASE)
    disturb(made)
    return net.eval(), made


@torch.no_grad()
def logits(net: torch.nn.Module) -> torch.Tensor:
    return net(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("stabilized", [False, True], ids=["alpha over rank", "alpha over its root"])
@pytest.mark.parametrize("name", SCALABLE)
def test_the_update_is_the_trained_one_times_the_scale(name: str, stabilized: bool, tmp_path: Path) -> None:
    net, made = attached(name, rs_lora=stabilized)
    assert isinstance(made, Scales)
    assert isinstance(made, SwitchesOff)
    trained = logits(net)
    with made.as_base():
        base = logits(net)
    made.apply_at(0.0)
    assert torch.equal(logits(net), base)
    made.apply_at(0.25)
    quarter = logits(net)
    made.export(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 0.25 * Lora(rank=4, rs_lora=stabilized).effective_alpha
    made.apply_at(1.0)
    assert torch.equal(logits(net), trained), "scales are of what was trained, not of the scale before"
    for parameter in (p for n, p in made.trainable.items() if "lora_B" in n):
        parameter.data.mul_(0.25)
    assert torch.allclose(logits(net), quarter, atol=1e-5)
    assert not torch.allclose(quarter, trained, atol=1e-2)


@pytest.mark.parametrize("name", SCALABLE)
def test_the_exported_adapter_is_the_scaled_one_for_whoever_loads_it(name: str, tmp_path: Path) -> None:
    net, made = attached(name)
    assert isinstance(made, Scales)
    made.apply_at(0.5)
    half = logits(net)
    made.export(tmp_path)
    plain = network(hidden_size=64, intermediate_size=128)
    loaded = method_of(Method(type=name)).load(plain, tmp_path)  # type: ignore[arg-type]
    assert torch.allclose(logits(loaded.eval()), half, atol=1e-5)
