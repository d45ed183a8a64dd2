"""Methods that leave most of the model as it is: what they train, how they start, and that they can be taken away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Adapter, Lora, Method, Partial
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.methods import adapter as bottleneck
from finetune_trainer.methods.base import Attached
from finetune_trainer.methods.lora import LoraAttached
from finetune_trainer.methods.needs import check
from finetune_trainer.methods.partial import last_layers, relative_gradients
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.sharded_4bit import SharedLinear4bit
from tests.support.training import BASE, disturb, network

TOKENS = torch.arange(24).view(2, 12)
PARTIAL = Method(type="partial", partial=Partial(layers=2))
DORA = Method(type="dora", dora=Lora(rank=4))
QLORA = Method(type="qlora", qlora=Lora(rank=4))
ADAPTER = Method(type="adapter", adapter=Adapter(bottleneck=8))
PFEIFFER = Method(type="adapter", adapter=Adapter(bottleneck=8, placement="pfeiffer"))
KINDS = ["Llama", "Qwen2", "GPTNeoX", "GPT2", "Gemma2", "Phi"]


def _attach(net: nn.Module, method: Method) -> Attached:
    return method_of(method).attach(net, seed=1, base=BASE)


def _logits(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(TOKENS, use_cache=False).logits


def _count(attached: Attached) -> int:
    return sum(parameter.numel() for parameter in attached.trainable.values())


# how they start


@pytest.mark.parametrize("method", [PARTIAL, DORA, ADAPTER, PFEIFFER], ids=["partial", "dora", "houlsby", "pfeiffer"])
@pytest.mark.parametrize(("kind", "dtype"), [*((kind, torch.float32) for kind in KINDS), ("Llama", torch.bfloat16)])
def test_a_fresh_method_changes_no_bit(kind: str, method: Method, dtype: torch.dtype) -> None:
    net = network(kind).to(dtype)
    before = _logits(net)
    _attach(net, method)
    assert torch.equal(_logits(net), before)


def test_what_is_added_trains_in_fp32_on_a_base_in_bf16() -> None:
    for method in (DORA, ADAPTER):
        attached = _attach(network().to(torch.bfloat16), method)
        assert {p.dtype for p in attached.trainable.values()} == {torch.float32}


# how much they train


def test_partial_trains_the_last_blocks_and_nothing_else() -> None:
    net = network(layers=4, tie_word_embeddings=True)
    attached = _attach(net, PARTIAL)
    assert attached.lowest_layer == 2
    assert {name.split(".")[2] for name in attached.trainable} == {"2", "3"}
    assert {name for name, p in net.named_parameters() if p.requires_grad} == attached.trainable.keys()
    assert not net.model.embed_tokens.weight.requires_grad


@pytest.mark.parametrize(("method", "places"), [(ADAPTER, 2), (PFEIFFER, 1)], ids=["houlsby", "pfeiffer"])
def test_a_bottleneck_has_2hm_m_h_weights(method: Method, places: int) -> None:
    attached = _attach(network(layers=3), method)
    assert _count(attached) == 3 * places * (2 * 32 * 8 + 8 + 32)


def test_dora_trains_a_magnitude_for_each_output_beside_the_matrices() -> None:
    net = network()
    attached = _attach(net, DORA)
    layers = [m for m in net.modules() if hasattr(m, "lora_magnitude_vector") and m.lora_magnitude_vector]
    outputs = sum(layer.base_layer.weight.shape[0] for layer in layers)
    assert _count(attached) == outputs + _count(_attach(network(), Method(lora=Lora(rank=4))))
    for layer in layers:
        norms = torch.linalg.norm(layer.base_layer.weight, dim=1)
        torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.data, norms)


# what the backward touches


def _graph(net: nn.Module) -> dict[str, bool]:
    """Which parts of the network record a gradient graph in a pass."""
    recorded: dict[str, bool] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            recorded[name] = first.grad_fn is not None

        return hook

    named = {"embeddings": net.model.embed_tokens} | {f"block {i}": block for i, block in enumerate(net.model.layers)}
    handles = [module.register_forward_hook(watch(name)) for name, module in named.items()]
    net(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    for handle in handles:
        handle.remove()
    return recorded


def test_no_graph_is_recorded_below_the_cut() -> None:
    net = network(layers=4)
    attached = _attach(net, PARTIAL)
    expected = {"embeddings": False} | {f"block {i}": i >= attached.lowest_layer for i in range(4)}
    assert _graph(net) == expected
    assert all(p.grad is not None for p in attached.trainable.values())
    frozen = {name: p for name, p in net.named_parameters() if name not in attached.trainable}
    assert all(p.grad is None for p in frozen.values())


def test_an_adapter_records_from_its_first_block_on() -> None:
    net = network(layers=3)
    _attach(net, ADAPTER)
    assert _graph(net) == {"embeddings": False, "block 0": True, "block 1": True, "block 2": True}


# which layers partial takes


SUFFIXES = [
    ([1.0, 1.0, 2.0, 4.0], 2),  # squares 1 1 4 16 of 22: 0.73, then 0.91
    ([0.0, 0.0, 1.0], 1),
    ([1.0, 0.0, 0.0], 3),
    ([1.0] * 10, 8),
    ([0.0, 0.0], 2),
    ([float("nan"), 1.0], 2),
]


@pytest.mark.parametrize(("relative", "layers"), SUFFIXES)
def test_the_fewest_last_layers_that_hold_four_fifths(relative: list[float], layers: int) -> None:
    assert last_layers(relative) == layers


def _loss(net: nn.Module, tokens: Tensor) -> Callable[[], Tensor]:
    return lambda: net(tokens, labels=tokens, use_cache=False).loss


def test_relative_gradients_are_those_of_a_plain_backward() -> None:
    batches = [TOKENS, TOKENS.flip(1)]
    net = network(layers=3)
    measured = relative_gradients(net, [_loss(net, tokens) for tokens in batches])
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())

    plain, layers = network(layers=3), decoder_layers(net)
    expected = [0.0] * 3
    for tokens in batches:
        plain.zero_grad()
        _loss(plain, tokens)().backward()
        for index in range(3):
            inside = [p for name, p in plain.named_parameters() if layers.index(name) == index]
            gradient = torch.cat([p.grad.flatten() for p in inside]).norm()
            expected[index] += float(gradient / torch.cat([p.detach().flatten() for p in inside]).norm()) / 2
    assert measured == pytest.approx(expected, rel=1e-5)


# what they leave behind


@pytest.mark.parametrize("method", [ADAPTER, PFEIFFER], ids=["houlsby", "pfeiffer"])
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "GPTNeoX"])
def test_an_adapter_is_saved_loaded_and_switched_to_the_bit(tmp_path: Path, kind: str, method: Method) -> None:
    base = _logits(network(kind))
    net = network(kind)
    attached = _attach(net, method)
    disturb(attached)
    tuned = _logits(net)
    assert not torch.allclose(tuned, base, atol=1e-3)
    attached.export(tmp_path)
    loaded = method_of(method).load(network(kind), tmp_path)
    assert torch.equal(_logits(loaded), tuned)
    with bottleneck.disabled(loaded):
        assert torch.equal(_logits(loaded), base)
    assert torch.equal(_logits(loaded), tuned)


def test_an_adapter_says_what_it_is(tmp_path: Path) -> None:
    from peft import PeftConfig

    _attach(network(), ADAPTER).export(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {"type": "BOTTLENECK", "base_model_name_or_path": "org/tiny", "bottleneck": 8, "placement": "houlsby"}
    assert {key: config[key] for key in expected} == expected
    with pytest.raises((KeyError, TypeError, ValueError)):
        PeftConfig.from_pretrained(tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    _attach(network(layers=2), ADAPTER).export(tmp_path)
    with pytest.raises(FinetuneError, match="the model has 3 of width 32") as error:
        bottleneck.load(network(layers=3), tmp_path)
    assert error.value.reason is Reason.ModelUnsupported
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(FinetuneError, match="not of type BOTTLENECK"):
        bottleneck.load(network(), tmp_path)


def test_an_adapter_needs_both_halves_of_a_block() -> None:
    net = network()
    for block in net.model.layers:
        block.renamed = block.mlp
        del block.mlp
    with pytest.raises(FinetuneError, match="no mlp part was found in LlamaDecoderLayer"):
        _attach(net, PFEIFFER)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_plain_peft_loads_dora_and_switches_it_off(tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    base = _logits(network(kind))
    net = network(kind)
    attached = _attach(net, DORA)
    assert isinstance(attached, LoraAttached)
    assert attached.fused == 0  # the fused layers know nothing of magnitudes
    disturb(attached)
    tuned = _logits(net)
    attached.export(tmp_path)
    loaded = PeftModel.from_pretrained(network(kind), tmp_path)
    torch.testing.assert_close(_logits(loaded), tuned, rtol=1e-5, atol=1e-6)
    with attached.adapter.disable_adapter():
        assert torch.equal(_logits(net), base)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["use_dora"] is True


def test_dora_computes_what_the_paper_says() -> None:
    """m · (W + s·BA) / ‖W + s·BA‖, row by row."""
    net = network()
    disturb(_attach(net, DORA))
    layer = net.model.layers[0].mlp.up_proj
    x = torch.randn(5, 32)
    update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    direction = layer.base_layer.weight + update
    magnitude = layer.lora_magnitude_vector["default"].weight
    expected = x @ (magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_partial_leaves_the_rest_to_the_bit(tmp_path: Path, tied: bool) -> None:
    before = {name: p.clone() for name, p in network(layers=4, tie_word_embeddings=tied).named_parameters()}
    net = network(layers=4, tie_word_embeddings=tied)
    attached = _attach(net, PARTIAL)
    disturb(attached)
    attached.settle()
    attached.export(tmp_path)
    loaded = method_of(PARTIAL).load(network(layers=4), tmp_path)
    assert torch.equal(_logits(loaded), _logits(net))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in attached.trainable), name


# what is refused


def test_more_layers_than_there_are_are_refused_before_and_while_loading() -> None:
    for refuse in (lambda: check(PARTIAL, layers=1), lambda: _attach(network(layers=1), PARTIAL)):
        with pytest.raises(FinetuneError, match="is 2, and the model has 1 decoder layers") as error:
            refuse()
        assert error.value.reason is Reason.InvalidSpec
    check(PARTIAL, layers=2)
    check(Method(type="partial"), layers=1)
    check(PARTIAL, layers=None)


def test_qlora_without_bitsandbytes_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for refuse in (lambda: check(QLORA, layers=2), lambda: _attach(network(), QLORA)):
        with pytest.raises(FinetuneError, match="needs the package bitsandbytes") as error:
            refuse()
        assert error.value.reason is Reason.InvalidSpec
        assert "finetune-operator[qlora]" in error.value.hint


def test_qlora_of_transposed_layers_is_refused() -> None:
    with pytest.raises(FinetuneError, match="GPT2LMHeadModel keeps its weights in other layers") as error:
        _attach(network("GPT2"), QLORA)
    assert error.value.reason is Reason.ModelUnsupported


# 4 bits


def wide() -> nn.Module:
    return network(hidden_size=64, intermediate_size=128)


def _in_four_bits() -> nn.Module:
    net = wide()
    method: Any = method_of(QLORA)
    method.quantise(net, device=torch.device("cpu"))
    return net


def test_four_bits_keep_weights_as_closely_as_nf4_does() -> None:
    """Normally distributed weights in blocks of 64 come back with a relative error of 0.092, from half a byte each."""
    from peft.utils.integrations import dequantize_module_weight

    before, net = wide(), _in_four_bits()
    for name, module in before.model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        packed = net.model.get_submodule(name)
        assert packed.weight.numel() == module.weight.numel() // 2
        assert packed.weight.quant_state.nested
        error = (dequantize_module_weight(packed) - module.weight).detach().norm() / module.weight.detach().norm()
        assert float(error) == pytest.approx(0.092, abs=0.01)


def test_widths_that_bitsandbytes_gets_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel for AVX-512 does so where rows are not a multiple of 64 long; this test brings such a kernel."""
    import bitsandbytes.functional as bnb

    right = bnb.dequantize_4bit

    def with_the_scales_of_other_blocks(packed: Any, state: Any, *rest: Any, **others: Any) -> torch.Tensor:
        weights = right(packed, state, *rest, **others)
        return weights if weights.shape[1] % 64 == 0 else weights.roll(1, dims=0)

    monkeypatch.setattr(bnb, "dequantize_4bit", with_the_scales_of_other_blocks)
    with pytest.raises(FinetuneError, match="cannot keep rows of 96 weights") as error:
        _attach(network(hidden_size=96, intermediate_size=128), QLORA)
    assert error.value.reason is Reason.ModelUnsupported


def test_four_bits_whose_blocks_would_cross_rows_are_not_sharded() -> None:
    with pytest.raises(FinetuneError, match="rows of 96 weights are not a multiple of 64") as error:
        SharedLinear4bit(nn.Linear(96, 8, device="meta"))
    assert error.value.reason is Reason.ModelUnsupported
    assert SharedLinear4bit(nn.Linear(128, 8, device="meta")).weight.nbytes == 8 * 128 // 2


def test_qlora_starts_as_its_base_in_four_bits_and_leaves_head_and_embeddings() -> None:
    before = _logits(_in_four_bits())
    net = wide()
    _attach(net, QLORA)
    assert torch.equal(_logits(net), before)
    assert net.lm_head.weight.dtype == net.model.embed_tokens.weight.dtype == torch.float32


def test_a_step_after_an_evaluation_still_trains() -> None:
    """On CPUs with bf16 instructions bitsandbytes repacks its weights in an evaluation, and has no backward then."""
    net = wide()
    attached = _attach(net, QLORA)
    disturb(attached)
    fresh = net(TOKENS, labels=TOKENS).loss
    fresh.backward()
    gradients = [p.grad.clone() for p in attached.trainable.values()]
    net.eval()
    evaluated = _logits(net)
    net.train()
    torch.testing.assert_close(_logits(net), evaluated, rtol=0, atol=0)
    net.zero_grad()
    net(TOKENS, labels=TOKENS).loss.backward()
    for parameter, gradient in zip(attached.trainable.values(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
        assert float(gradient.abs().max()) > 0


def test_qlora_exports_plain_lora(tmp_path: Path) -> None:
    net = wide()
    attached = _attach(net, QLORA)
    disturb(attached)
    tuned = _logits(net)
    attached.export(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 4, "org/tiny")
    assert torch.equal(_logits(method_of(QLORA).load(wide(), tmp_path)), tuned)
    assert isinstance(attached, LoraAttached)
    with attached.adapter.disable_adapter():
        assert torch.equal(_logits(net), _logits(_in_four_bits()))
