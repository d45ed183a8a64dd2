"""Mixtures of experts: all of them are held, few are computed, and adapters stay beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method, Partial
from finetune_trainer.methods.experts import TAKEN_BY_PEFT, Experts
from finetune_trainer.methods.lora import LoraAttached
from finetune_trainer.methods.registry import method_of
from finetune_trainer.planning.memory import estimate, trained_parameters
from finetune_trainer.planning.model import ModelShape, check_on_experts, read_shape
from finetune_trainer.planning.speed import token_operations
from tests.support.planning_models import MIXTRAL
from tests.support.training import BASE, network

QWEN3 = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
}  # fmt: skip
OLMOE = {
    "model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 1024,
    "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 50304,
    "num_experts": 64, "num_experts_per_tok": 8, "tie_word_embeddings": False,
}  # fmt: skip
QWEN15 = {
    "model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
    "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936, "num_experts": 60,
    "num_experts_per_tok": 4, "decoder_sparse_step": 1, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK_LITE = {
    "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 2048,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
    "num_key_value_heads": 16, "vocab_size": 102400, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": None,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "vocab_size": 129280, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "tie_word_embeddings": False,
}  # fmt: skip


def shape_of(folder: Path, config: dict[str, Any]) -> ModelShape:
    (folder / "config.json").write_text(json.dumps(config))
    return read_shape(folder, weightless=True)


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [  # in billions, as the models' cards and papers have them; DeepSeek's 2.4 and 37 leave out what looks up tokens
        (MIXTRAL, 46.7, 12.9),
        (QWEN3, 30.5, 3.3),
        (OLMOE, 6.9, 1.3),
        (QWEN15, 14.3, 2.7),
        (DEEPSEEK_LITE, 15.7, 2.4 + 0.21),
        (DEEPSEEK_V3, 671.0, 36.6 + 0.93),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)
def test_total_and_active_parameters_are_those_published(
    tmp_path: Path, config: dict[str, Any], total: float, active: float
) -> None:
    shape = shape_of(tmp_path, config)
    assert shape.parameters / 1e9 == pytest.approx(total, abs=0.06 + total / 1e4)
    assert shape.active / 1e9 == pytest.approx(active, abs=0.06)


@pytest.mark.parametrize(
    ("method", "operations"),
    [
        (Method(type="full"), 6 * 12_879_925_248),
        (Method(type="lora"), 4 * 12_879_925_248 + 6 * 13_631_488),
        (Method(type="probe"), 2 * 12_879_925_248),
    ],
    ids=lambda value: value.type if isinstance(value, Method) else "",
)
def test_time_is_of_what_a_token_meets_and_memory_of_all_there_is(
    tmp_path: Path, method: Method, operations: int
) -> None:
    shape = shape_of(tmp_path, MIXTRAL)
    assert token_operations(shape, method, row=0) == operations
    need = estimate(shape, method, precision="bfloat16", device="cuda", tokens=1024)
    trained = trained_parameters(shape, method)
    assert need.weights == (6 * shape.parameters if method.type == "full" else 2 * shape.parameters + 4 * trained)
    assert need.optimizer == 12 * trained
    assert trained == {"full": shape.parameters, "lora": 13_631_488, "probe": 0}[method.type]


def test_the_last_blocks_are_computed_by_what_a_token_meets_of_them(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, OLMOE)
    method = Method(type="partial", partial=Partial(layers=4))
    assert trained_parameters(shape, method) == sum(shape.blocks[-4:])
    whole = token_operations(shape, method, row=0)
    assert whole == 2 * shape.active + 4 * shape.active_in_last(4) + 2 * 50304 * 2048
    dense = replace(shape, idle=(), passed=0)
    assert token_operations(dense, method, row=0) > 4 * whole


def test_a_block_is_as_wide_as_all_that_a_token_passes(tmp_path: Path) -> None:
    widths = {
        kind: shape_of(tmp_path, config).intermediate
        for kind, config in {"Mixtral": MIXTRAL, "Qwen3": QWEN3, "Qwen1.5": QWEN15, "V2-Lite": DEEPSEEK_LITE}.items()
    }
    # V2-Lite: six experts and two that every token passes, beside one dense block of 10944.
    assert widths == {"Mixtral": 2 * 14336, "Qwen3": 8 * 768, "Qwen1.5": 4 * 1408 + 5632, "V2-Lite": 8 * 1408}


TINY: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 64, "head_dim": 16, "mlp_only_layers": [0]},
    "Olmoe": {"num_experts": 4},
    "Phimoe": {"num_local_experts": 4},
    "GraniteMoe": {"num_local_experts": 4},
    "Glm4Moe": {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 64, "head_dim": 16,
                "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "HunYuanMoEV1": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "DeepseekV2": {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 64, "kv_lora_rank": 16,
                   "first_k_dense_replace": 1, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
                   "v_head_dim": 8, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
}  # fmt: skip
"""Experts alone, beside dense blocks, and beside networks that every token passes."""


def tiny(kind: str) -> Any:
    passed = {} if "moe_topk" in TINY[kind] else {"num_experts_per_tok": 2}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    return network(kind, **sizes, **passed, **TINY[kind])


@pytest.mark.parametrize("kind", TINY)
def test_what_is_planned_is_what_transformers_builds_and_peft_adapts(tmp_path: Path, kind: str) -> None:
    net = tiny(kind)
    net.save_pretrained(tmp_path)
    shape, method = read_shape(tmp_path), Method(type="lora", lora=Lora(rank=4))
    experts = [p for name, p in net.named_parameters() if p.ndim == 3]
    assert Experts.of(net.config.to_dict()) == Experts(4, 2)
    assert shape.parameters - shape.active == sum(p.numel() for p in experts) // 2
    attached = method_of(method).attach(net, seed=1, base=BASE)
    assert isinstance(attached, LoraAttached)
    assert sum(p.numel() for p in attached.trainable.values()) == trained_parameters(shape, method)
    assert attached.without == shape.unreached
    assert not [name for name in attached.trainable if ".experts." in name or ".gate." in name or "router" in name]


def test_an_adapter_beside_experts_is_read_by_plain_peft_as_it_was_trained(tmp_path: Path) -> None:
    """PEFT takes `up_proj` for the experts' here; named, it would have put adapters into them in place of ours."""
    from peft import PeftModel

    net = tiny("DeepseekV2")
    attached = method_of(Method()).attach(net, seed=1, base=BASE)
    assert isinstance(attached, LoraAttached)
    with torch.no_grad():
        for parameter in attached.trainable.values():
            parameter.normal_(std=0.1)
        row = torch.arange(2, 20)[None]
        expected = net(input_ids=row).logits
        attached.export(tmp_path)
        loaded = PeftModel.from_pretrained(tiny("DeepseekV2"), tmp_path)
        torch.testing.assert_close(loaded(input_ids=row).logits, expected)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(attached.trainable)
    assert not json.loads((tmp_path / "adapter_config.json").read_text())["target_parameters"]


def test_the_families_that_peft_takes_so_are_those_named_here() -> None:
    from peft.utils import transformers_weight_conversion as conversion
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    named = {kind for kind, family in conversion._MODEL_TO_CONVERSION_PATTERN.items() if family == "qwen2_moe"}
    assert named & set(CAUSAL) == TAKEN_BY_PEFT


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Method(type="qlora"), r"9\d % of the weights of the model's blocks are in other layers"),
        (Method(type="lora", lora=Lora(targets="mlp")), "method.lora.targets mlp reaches nothing in this model"),
    ],
)
def test_a_method_that_experts_leave_nothing_to_is_refused_before_anything_waits(
    tmp_path: Path, method: Method, words: str
) -> None:
    with pytest.raises(FinetuneError, match=words) as caught:
        check_on_experts(method, shape_of(tmp_path, QWEN3))
    assert caught.value.reason is Reason.ModelUnsupported
    check_on_experts(Method(), shape_of(tmp_path, QWEN3))
