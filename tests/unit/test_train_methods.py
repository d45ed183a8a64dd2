"""Methods: what they train, that LoRA starts as the base model, and that servers can load what they export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.methods.base import Base
from finetune_trainer.methods.fused import FusedLinear
from finetune_trainer.methods.lora import LoraAttached, target_suffixes
from finetune_trainer.methods.registry import method_of
from tests.support.training import BASE, disturb, network

TOKENS = torch.arange(24).view(2, 12)


def _lora(net: nn.Module, **settings: object) -> LoraAttached:
    attached = method_of(Method(type="lora", lora=Lora(**settings))).attach(net, seed=1, base=BASE)
    assert isinstance(attached, LoraAttached)
    return attached


TARGETS = [
    ("Llama", "all-linear", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
    ("Llama", "attention", ["k_proj", "o_proj", "q_proj", "v_proj"]),
    ("Llama", "mlp", ["down_proj", "gate_proj", "up_proj"]),
    ("GPTNeoX", "attention", ["dense", "query_key_value"]),
    ("GPTNeoX", "mlp", ["dense_4h_to_h", "dense_h_to_4h"]),
    ("GPT2", "attention", ["attn.c_proj", "c_attn"]),
    ("GPT2", "all-linear", ["c_attn", "c_fc", "c_proj"]),
    ("Phi", "mlp", ["fc1", "fc2"]),
]


@pytest.mark.parametrize(("kind", "targets", "names"), TARGETS)
def test_targets_are_the_linear_layers_of_the_blocks(kind: str, targets: str, names: list[str]) -> None:
    net = network(kind)
    assert target_suffixes(net, decoder_layers(net), targets) == names


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Mixtral"])
def test_adapters_in_the_last_layers_alone(kind: str) -> None:
    net = network(kind, layers=3)
    whole = len(_lora(network(kind, layers=3)).trainable)
    attached = _lora(net, layers=1)
    assert attached.lowest_layer == 2
    assert len(attached.trainable) == whole // 3
    assert all(re.search(r"\.(layers|h)\.2\.", name) for name in attached.trainable)
    assert len(_lora(network(kind, layers=3), layers=9).trainable) == whole


def test_nothing_is_recorded_below_the_lowest_adapter() -> None:
    net = network(layers=3)
    attached = _lora(net, layers=1)
    hidden = net.model(TOKENS, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in hidden] == [False, False, False, True]
    attached.adapter(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in attached.trainable.values())


def test_a_block_without_the_wanted_layers_is_refused() -> None:
    net = network()
    for layer in net.model.layers:
        layer.mlp = nn.Identity()
    with pytest.raises(FinetuneError) as error:
        target_suffixes(net, decoder_layers(net), "mlp")
    assert error.value.reason is Reason.ModelUnsupported


@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX", "GPT2"])
def test_lora_starts_as_the_base_model(kind: str) -> None:
    net = network(kind)
    before = net(TOKENS).logits
    _lora(net)
    assert torch.equal(net(TOKENS).logits, before)


def test_lora_trains_its_matrices_alone_and_the_same_ones_for_a_seed() -> None:
    net, twin = network(), network(seed=7)
    first, second = _lora(net, rank=4), _lora(twin, rank=4)
    assert all("lora_" in name for name in first.trainable)
    assert len(first.trainable) == 2 * 7 * 2
    assert sum(p.numel() for p in first.trainable.values()) == 4 * sum(
        sum(m.base_layer.weight.shape) for m in net.modules() if isinstance(m, FusedLinear)
    )
    for name, parameter in first.trainable.items():
        assert torch.equal(parameter, second.trainable[name])


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "GPTNeoX"], ids=["no bias", "some bias", "bias"])
def test_the_fused_forward_and_backward_are_pefts(kind: str) -> None:
    results = []
    for fused in (True, False):
        net = network(kind)
        attached = _lora(net, rank=4)
        assert attached.fused > 0
        disturb(attached)
        if not fused:
            for module in net.modules():
                if isinstance(module, FusedLinear):
                    module.__class__ = FusedLinear.__mro__[1]
        loss = net(TOKENS, labels=TOKENS).loss
        loss.backward()
        results.append((loss.detach(), [p.grad for p in attached.trainable.values()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_dropout_and_transposed_layers_keep_pefts_forward() -> None:
    assert _lora(network(), dropout=0.1).fused == 0
    assert _lora(network("GPT2")).fused == 0


def test_the_fused_forward_yields_when_the_adapter_is_switched_off_or_merged() -> None:
    net = network()
    before = net(TOKENS).logits
    attached = _lora(net)
    disturb(attached)
    adapted = net(TOKENS).logits
    assert not torch.allclose(adapted, before, atol=1e-3)
    with attached.adapter.disable_adapter():
        assert torch.equal(net(TOKENS).logits, before)
    attached.adapter.merge_adapter()
    torch.testing.assert_close(net(TOKENS).logits, adapted, rtol=1e-4, atol=1e-5)


def test_an_exported_adapter_gives_plain_peft_equal_logits(tmp_path: Path) -> None:
    from peft import PeftModel

    net = network()
    attached = _lora(net, rank=4)
    disturb(attached)
    attached.export(tmp_path)
    loaded = PeftModel.from_pretrained(network(), tmp_path)
    torch.testing.assert_close(loaded(TOKENS).logits, net(TOKENS).logits, rtol=1e-5, atol=1e-6)
    again = method_of(Method()).load(network(), tmp_path)
    assert torch.equal(again(TOKENS).logits, loaded(TOKENS).logits)


@pytest.mark.parametrize(
    ("settings", "alpha", "scale"),
    [
        ({"rank": 16}, 32, 2.0),
        ({"rank": 16, "alpha": 8}, 8, 0.5),
        ({"rank": 64, "rs_lora": True}, 16, 2.0),
        ({"rank": 256, "rs_lora": True}, 16, 1.0),
        ({"rank": 4, "rs_lora": True, "alpha": 3}, 3, 1.5),
    ],
)
def test_an_update_counts_by_alpha_and_rank(
    tmp_path: Path, settings: dict[str, Any], alpha: float, scale: float
) -> None:
    """alpha/rank, or with rsLora alpha/√rank; and so it does where plain PEFT loads the export."""
    from peft import PeftModel

    net = network()
    attached = _lora(net, **settings)
    disturb(attached)
    layer = net.model.layers[0].mlp.up_proj
    assert (attached.adapter.peft_config["default"].lora_alpha, layer.scaling["default"]) == (alpha, scale)
    x = torch.randn(5, 32)
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer(x), layer.base_layer(x) + scale * x @ update.T, rtol=1e-4, atol=1e-5)
    attached.export(tmp_path)
    loaded = PeftModel.from_pretrained(network(), tmp_path)
    torch.testing.assert_close(loaded(TOKENS).logits, net(TOKENS).logits, rtol=1e-5, atol=1e-6)


def test_an_exported_adapter_is_what_servers_accept(tmp_path: Path) -> None:
    """transfer: vLLM reads rank, alpha and targets, refuses or ignores the rest."""
    _lora(network(), rank=8, targets="attention").export(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/tiny",
        "r": 8,
        "lora_alpha": 16,
        "bias": "none",
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    assert {key: config[key] for key in expected} == expected
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_adapter_keys_are_pefts(tmp_path: Path) -> None:
    from safetensors import safe_open

    _lora(network(layers=1), rank=8).export(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
    assert len(keys) == 14
    assert all(key.startswith("base_model.model.model.layers.0.") for key in keys)
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)


LOWEST = [("Llama", Method(type="full"), -1), ("Llama", Method(type="lora"), 0)]


@pytest.mark.parametrize(("kind", "method", "lowest"), LOWEST)
def test_the_lowest_layer_that_trains(kind: str, method: Method, lowest: int) -> None:
    assert method_of(method).attach(network(kind), seed=1, base=BASE).lowest_layer == lowest


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_full_exports_what_was_measured(tmp_path: Path, tied: bool) -> None:
    """A model that came in bfloat16 leaves in bfloat16, and is measured as it leaves."""
    net = network(tie_word_embeddings=tied)
    attached = method_of(Method(type="full")).attach(net, seed=1, base=Base("org/tiny", torch.bfloat16))
    attached.settle()
    measured = net(TOKENS).logits
    attached.export(tmp_path)
    loaded = method_of(Method(type="full")).load(network(), tmp_path)
    torch.testing.assert_close(loaded(TOKENS).logits, measured, rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert net.lm_head.weight.dtype == torch.float32
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied, "tied weights are written once"
