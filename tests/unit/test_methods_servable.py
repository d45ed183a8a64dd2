"""What a folder can be served by, judged by its files: what servers refuse, and what each method writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_api.methods import Lora, Method, Partial
from finetune_trainer.methods.registry import method_of
from finetune_trainer.methods.servable import judge
from tests.support.training import BASE, network

KEY = "base_model.model.model.layers.0.self_attn.q_proj"
PLAIN: dict[str, Any] = {
    "peft_type": "LORA", "base_model_name_or_path": "org/tiny", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"],
    "bias": "none", "modules_to_save": None, "use_dora": False, "use_rslora": False, "rank_pattern": {},
    "alpha_pattern": {},
}  # fmt: skip


def _adapter(folder: Path, config: dict[str, Any], names: tuple[str, ...] = ("lora_A.weight", "lora_B.weight")) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({f"{KEY}.{name}": np.zeros((2, 2), np.float32) for name in names}, folder / "adapter_model.safetensors")
    return folder


def test_plain_lora_is_served_as_lora(tmp_path: Path) -> None:
    assert judge(_adapter(tmp_path, PLAIN)) == ("lora", ())


REFUSED = [
    ({"use_dora": True}, "use_dora is set"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
    ({"bias": "lora_only"}, "bias is lora_only"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is set"),
    ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern is set"),
    ({"trainable_token_indices": [7]}, "trainable_token_indices is set"),
    ({"target_parameters": ["experts.up"]}, "target_parameters is set"),
    ({"layer_replication": [[0, 4]]}, "layer_replication is set"),
    ({"r": 1024}, "rank 1024 is more than 512"),
    ({"base_model_name_or_path": ""}, "the base model has no name"),
    ({"peft_type": "PREFIX_TUNING"}, "the adapter is of type PREFIX_TUNING, and no LoRA"),
    ({"peft_type": None, "type": "BOTTLENECK"}, "the adapter is of type BOTTLENECK, and no LoRA"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_what_servers_refuse_or_get_wrong_is_for_transformers(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    assert judge(_adapter(tmp_path, PLAIN | changes)) == ("hf-only", (reason,))


@pytest.mark.parametrize("name", ["lora_magnitude_vector", "token_adapter.trainable_tokens_delta", "weight"])
def test_weights_that_are_no_lora_matrices_are_for_transformers(tmp_path: Path, name: str) -> None:
    level, reasons = judge(_adapter(tmp_path, PLAIN, ("lora_A.weight", name)))
    assert level == "hf-only"
    assert reasons == (f"1 of its weights are not LoRA matrices, for instance {KEY}.{name}",)


NO_LM = "config.json names no causal language model"
OWN_CODE = "it needs code of its own (auto_map)"
MODELS = [
    ({"architectures": ["LlamaForCausalLM"]}, True, "merged", ()),
    ({"architectures": ["GPT2LMHeadModel"]}, True, "merged", ()),
    ({"architectures": ["LlamaForSequenceClassification"]}, True, "hf-only", (NO_LM,)),
    ({"architectures": ["LlamaForCausalLM"]}, False, "hf-only", ("it has no weights in safetensors",)),
    ({"architectures": ["MyForCausalLM"], "auto_map": {"AutoModel": "x"}}, True, "hf-only", (OWN_CODE,)),
]


@pytest.mark.parametrize(("config", "weights", "level", "reasons"), MODELS)
def test_whole_models(
    tmp_path: Path, config: dict[str, Any], weights: bool, level: str, reasons: tuple[str, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights:
        save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    assert judge(tmp_path) == (level, reasons)


def test_an_empty_folder_is_nothing(tmp_path: Path) -> None:
    assert judge(tmp_path) == ("hf-only", ("there is neither an adapter_config.json nor a config.json",))


METHODS = [
    (Method(type="full"), "merged"),
    (Method(type="partial", partial=Partial(layers=1)), "merged"),
    (Method(type="lora", lora=Lora(rank=8)), "lora"),
    (Method(type="lora", lora=Lora(rank=1000)), "hf-only"),
    (Method(type="lora", lora=Lora(rank=64, rs_lora=True)), "lora"),
    (Method(type="qlora"), "lora"),
    (Method(type="dora"), "hf-only"),
    (Method(type="adapter"), "hf-only"),
    (Method(type="prompt"), "hf-only"),
    (Method(type="prefix"), "hf-only"),
    (Method(type="ptuning"), "hf-only"),
]


@pytest.mark.parametrize(("method", "level"), METHODS, ids=lambda m: m.type if isinstance(m, Method) else m)
def test_what_each_method_writes(tmp_path: Path, method: Method, level: str) -> None:
    net = network(hidden_size=64, intermediate_size=128)
    method_of(method).attach(net, seed=1, base=BASE).export(tmp_path)
    assert judge(tmp_path).servable == level
