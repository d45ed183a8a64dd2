"""Methods on families that are not laid out like Llama: what trains there, and what is refused by name beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.cli.plan import Wish, show_plan
from finetune_trainer.methods.called import is_called
from finetune_trainer.methods.registry import method_of
from finetune_trainer.methods.soft import SoftAttached
from finetune_trainer.planning.model import read_shape
from finetune_trainer.store.models import check_model
from finetune_trainer.train.capabilities import probe
from finetune_trainer.train.frozen_layers import find_frozen_layers
from finetune_trainer.train.method_support import answer
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.transfer.evaluate import Layout
from finetune_trainer.transfer.features import features
from tests.matrix.cells import SMALL, TOKENS, config_of
from tests.support.model_families import FAMILIES, network_of
from tests.support.training import BASE, CPU, disturb, documents

METHODS = {name: method for name, method in SMALL.items() if name not in ("partial", "qlora")}
"""Those that are put into a network, or before it."""

BY_NAME = {
    "mamba": "adapter prefix",
    "mamba2": "adapter prefix",
    "falcon_mamba": "adapter prefix",
    "falcon_h1": "prefix",
    "nemotron_h": "adapter prefix",
    "jamba": "adapter prefix",
    "bamba": "adapter prefix",
    "olmo_hybrid": "prefix",
    "llama4_text": "",
    "gemma3n_text": "prompt ptuning",
    "gemma4_text": "prompt ptuning",
    "rwkv": "prefix",
    "opt": "",
    "bloom": "",
    "deepseek_v3": "prefix",
}
"""Family to the methods that it refuses."""


@pytest.mark.parametrize("family", BY_NAME)
def test_a_plan_refuses_what_a_run_refuses_in_the_same_words(tmp_path: Path, family: str) -> None:
    folder = config_of(tmp_path, network_of(family))
    refused = []
    for name, method in METHODS.items():
        expected: dict[str, Any] = {}
        try:
            method_of(method).attach(network_of(family), seed=1, base=BASE)
        except FinetuneError as error:
            refused.append(name)
            expected = {"reason": Reason.ModelUnsupported, "message": error.message, "hint": error.hint}
        assert answer(folder, method) == expected
    assert " ".join(refused) == BY_NAME[family]


STATE_SPACES = [
    "mamba",
    "mamba2",
    "falcon_mamba",
    "falcon_h1",
    "nemotron_h",
    "jamba",
    "bamba",
    "zamba2",
    "gemma3n_text",
]


@pytest.mark.parametrize("family", STATE_SPACES)
def test_every_adapter_that_is_put_beside_a_layer_is_asked(family: str) -> None:
    """In training, too: there some blocks hand their weights to fused kernels, or multiply with them."""
    net = network_of(family)
    attached = method_of(METHODS["lora"]).attach(net, seed=1, base=BASE)
    called: set[str] = set()
    for name, module in net.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
            owner = name.removesuffix(".lora_B.default")
            assert is_called(net, owner)
    for module in net.modules():
        if hasattr(module, "forward") and type(module).__name__ == "FusedLinear":
            module.__class__ = type(module).__mro__[1]  # PEFT's own forward, which calls the matrices as modules
    net.train()
    net(TOKENS, use_cache=False)
    assert called == {name for name, _ in net.named_modules() if name.endswith("lora_B.default")}
    assert attached.trainable


def test_layers_whose_weights_are_read_by_their_block_are_left_out() -> None:
    names = {
        "mamba": {"x_proj", "dt_proj", "out_proj"},
        "mamba2": {"out_proj"},
        "falcon_h1": {"out_proj"},
        "jamba": {"dt_proj"},
        "bamba": {"out_proj"},
        "gemma3n_text": {"correction_coefs", "prediction_coefs"},
        "bloom": set(),
        "llama": set(),
        "gpt2": set(),
    }
    for family, expected in names.items():
        net = network_of(family)
        linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear) and "head" not in name]
        assert {name.rpartition(".")[2] for name in linear if not is_called(net, name)} == expected, family


SOFT = [
    ("mamba", "prompt"), ("mamba2", "ptuning"), ("rwkv", "prompt"), ("falcon_h1", "prompt"), ("jamba", "ptuning"),
    ("opt", "prefix"), ("bloom", "prefix"), ("opt", "prompt"), ("bloom", "prompt"), ("llama4_text", "prompt"),
    ("llama4_text", "prefix"), ("mpt", "prefix"), ("gpt_neo", "prefix"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "method"), SOFT)
def test_plain_peft_computes_what_training_computed(tmp_path: Path, family: str, method: str) -> None:
    net = network_of(family)
    attached = method_of(METHODS[method]).attach(net, seed=1, base=BASE)
    assert isinstance(attached, SoftAttached)
    disturb(attached)
    ids = torch.from_numpy(attached.ids).long()[None].expand(2, -1)
    whole = torch.cat([ids, TOKENS], dim=1)
    with torch.no_grad():
        ours = net(whole, position_ids=torch.arange(whole.shape[1])[None].expand(2, -1), use_cache=False).logits
    attached.export(tmp_path)
    plain = method_of(METHODS[method]).load(network_of(family), tmp_path)
    with torch.no_grad():
        theirs = plain(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    torch.testing.assert_close(ours[:, -12:], theirs[:, -12:], rtol=1e-5, atol=1e-5)


def test_a_model_with_code_of_its_own_is_refused_with_the_truth(tmp_path: Path) -> None:
    config = {"model_type": "wonder", "architectures": ["WonderForCausalLM"], "hidden_size": 8}
    config["auto_map"] = {"AutoConfig": "wonder.WonderConfig", "AutoModelForCausalLM": "wonder.WonderForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FinetuneError) as refused:
        check_model(tmp_path, "hf://org/wonder")
    assert refused.value.reason is Reason.ModelUnsupported
    assert "wonder.WonderForCausalLM" in refused.value.message
    assert "never run, by choice" in refused.value.message
    assert "trust_remote_code" not in refused.value.message + refused.value.hint


def test_code_beside_a_class_that_transformers_has_is_not_needed(tmp_path: Path) -> None:
    network_of("falcon").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_model(tmp_path, "hf://org/falcon")


@pytest.mark.parametrize("error", [TypeError, AttributeError, ValueError, KeyError, IndexError, NotImplementedError])
def test_what_a_network_cannot_compute_is_a_fault_of_the_model(error: type[Exception]) -> None:
    net = network_of("llama")
    model = LanguageModel(net, CPU, None, probe(net, CPU))

    def fails(*_: Any, **__: Any) -> Any:
        raise error("no such thing")

    net.model.layers[1].forward = fails
    with pytest.raises(FinetuneError) as refused:
        model.token_nats(np.zeros((1, 4), np.int64), np.arange(4)[None], np.ones((1, 4), np.int64))
    assert refused.value.reason is Reason.ModelUnsupported
    assert "LlamaForCausalLM cannot compute a batch" in refused.value.message


@pytest.mark.parametrize("family", ["gemma3n_text", "mamba", "rwkv", "nemotron_h", "xlstm", "mpt", "xglm", "falcon_h1"])
def test_sizes_of_any_family_are_read(tmp_path: Path, family: str) -> None:
    net = network_of(family)
    net.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    assert shape.layers == net.config.num_hidden_layers
    assert abs(shape.parameters - sum(p.numel() for p in net.parameters())) < 10
    assert len(FAMILIES) >= 35


def test_the_plan_command_refuses_with_these_words(tmp_path: Path) -> None:
    folder = config_of(tmp_path, network_of("mamba"))
    network_of("mamba").save_pretrained(folder)
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"uri": f"file://{folder}"},
            "data": {"train": [{"uri": f"file://{folder}/train.jsonl"}]},
            "method": {"type": "prefix"},
            "output": {"uri": f"file://{folder}/output"},
        },
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    with pytest.raises(FinetuneError) as refused:
        show_plan(Wish(file=str(tmp_path / "job.yaml"), gpu="H100"))
    assert refused.value.reason is Reason.ModelUnsupported
    assert "MambaForCausalLM" in refused.value.message


def test_blocks_that_carry_several_states_of_a_token() -> None:
    """Gemma 3n: features are of the one that its layers compute with, and no frozen layer's states are kept."""
    net = network_of("gemma3n_text")
    (batch,) = Layout(max_tokens=64, sequence_length=64, packing=False, pad_id=0).batches(documents([9]), np.arange(1))
    seen: list[torch.Tensor] = []
    hook = net.model.layers[1].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        net(torch.from_numpy(batch.tokens), use_cache=False)
    hook.remove()
    found = features(net, batch, [2])[0, 0]
    torch.testing.assert_close(torch.from_numpy(found[32:]), seen[0][0, 0, -1])
    assert find_frozen_layers(net, 1, CPU) is None


def test_a_family_that_transformers_does_not_know_is_named(tmp_path: Path) -> None:
    config = {"model_type": "wonder", "architectures": ["WonderForCausalLM"], "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused = answer(tmp_path, METHODS["lora"])
    assert refused["reason"] is Reason.ModelUnsupported
    assert "wonder" in refused["message"]
    assert "pip install" not in refused["message"] + refused["hint"]
