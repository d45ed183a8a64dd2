"""Names and shapes of a model's tensors from config.json alone, of families that are laid out like Llama.

Differences that count: attention with latent keys and values (DeepSeek), and experts in place of a feed-forward
network, with or without some that every token passes. Of what is small (biases, norms of queries) some is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.methods.experts import Experts
from finetune_trainer.store.weights_report import WeightsReport, mismatched

Shapes = dict[str, tuple[int, ...]]

_DENSE = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
_NEAR = {"gemma": "llama", "gemma2": "llama", "gemma3_text": "qwen3", "phi3": "llama"}
"""Families, and the dense one that they are laid out like."""
_WITH_EXPERTS = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")
_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def layout(config: Mapping[str, Any], head_size: int) -> Shapes:
    """By tensor name. ValueError for a family that is not known, KeyError for a size that config.json lacks."""
    if config.get("model_type") not in (*_DENSE, *_WITH_EXPERTS):
        raise ValueError(f"there are no weights, and {config.get('model_type')} is not laid out like Llama")
    h = config["hidden_size"]
    tensors: Shapes = {"model.norm.weight": (h,)}
    for index in range(config["num_hidden_layers"]):
        block = _attention(config, head_size) | _feed_forward(config, index)
        block |= {"input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,)}
        tensors |= {f"model.layers.{index}.{name}": shape for name, shape in block.items()}
    outside = _EMBEDDINGS[:1] if config.get("tie_word_embeddings") else _EMBEDDINGS
    return tensors | dict.fromkeys(outside, (config["vocab_size"], h))


def is_exactly(config: Mapping[str, Any], tensors: Shapes) -> bool:
    """Whether a model has every tensor of its family and no other, each in its shape; False too where that is not
    known from here, as of any family that is not dense."""
    return tensors == (_dense(config) or _near(config))


def difference(config: Mapping[str, Any], tensors: Shapes) -> WeightsReport | None:
    """What the files of a dense model lack, or have in another shape; None where the family is not known from here.
    Tensors beyond those are left to the class, which may know them."""
    expected = _dense(config)
    if expected is None:
        return None
    found = {name if name in expected else f"model.{name}": shape for name, shape in tensors.items()}
    return WeightsReport(
        str((config.get("architectures") or ["?"])[0]),
        missing=tuple(sorted(expected.keys() - found.keys())),
        unexpected=tuple(sorted(tensors)) if not expected.keys() & found.keys() else (),
        mismatched=mismatched(expected, found),
    )


def _dense(config: Mapping[str, Any]) -> Shapes | None:
    """All tensors of a dense family, by name; None where config.json leaves something open."""
    family = config.get("model_type")
    if family not in _DENSE or config.get("tie_word_embeddings") is None:
        return None
    try:
        head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        expected = layout(config, head_size)
    except (KeyError, TypeError, ZeroDivisionError):
        return None
    for name, shape in list(expected.items()):
        projection = name.split(".")[-2]
        biased = config.get("attention_bias") if "self_attn" in name else "mlp" in name and config.get("mlp_bias")
        if family == "qwen2":
            biased = projection in ("q_proj", "k_proj", "v_proj")
        if biased and projection.endswith("_proj"):
            expected[name.removesuffix("weight") + "bias"] = shape[:1]
        if family == "qwen3" and projection in ("q_proj", "k_proj"):
            expected[name.replace("_proj.", "_norm.")] = (head_size,)
    return expected


def _near(config: Mapping[str, Any]) -> Shapes | None:
    """All tensors of families that differ from a dense one by norms, or by matrices in one tensor."""
    family, tied = config.get("model_type"), config.get("tie_word_embeddings")
    if family not in _NEAR or config.get("attention_bias"):
        return None
    tied = family != "phi3" if tied is None else tied
    plain = _dense({**config, "model_type": _NEAR[family], "tie_word_embeddings": tied})
    if plain is None or family == "gemma":
        return plain
    if family != "phi3":
        norms = (f"model.layers.{index}." for index in range(config["num_hidden_layers"]))
        wide = (config["hidden_size"],)
        return plain | {f"{at}{side}_feedforward_layernorm.weight": wide for at in norms for side in ("pre", "post")}
    expected: Shapes = {}
    for name, (rows, *others) in plain.items():
        for parts, whole in ((("q_proj", "k_proj", "v_proj"), "qkv_proj"), (("gate_proj", "up_proj"), "gate_up_proj")):
            if name.split(".")[-2] in parts:
                name = ".".join([*name.split(".")[:-2], whole, "weight"])
        expected[name] = (rows + expected.get(name, (0,))[0], *others)
    return expected


def _attention(config: Mapping[str, Any], head_size: int) -> Shapes:
    h, heads = config["hidden_size"], config["num_attention_heads"]
    if latent := config.get("kv_lora_rank"):
        turned, plain, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
        low = config.get("q_lora_rank")
        wide = heads * (turned + plain)
        queries: Shapes = {"q_a_proj.weight": (low, h), "q_b_proj.weight": (wide, low)} if low else {}
        found = queries or {"q_proj.weight": (wide, h)}
        found |= {
            "kv_a_proj_with_mqa.weight": (latent + turned, h), "kv_b_proj.weight": (heads * (plain + value), latent),
            "o_proj.weight": (h, heads * value),
        }  # fmt: skip
    else:
        q, k = heads * head_size, (config.get("num_key_value_heads") or heads) * head_size
        found = {"q_proj.weight": (q, h), "k_proj.weight": (k, h), "v_proj.weight": (k, h), "o_proj.weight": (h, q)}
    return {f"self_attn.{name}": shape for name, shape in found.items()}


def _feed_forward(config: Mapping[str, Any], index: int) -> Shapes:
    h, f, experts = config["hidden_size"], config["intermediate_size"], Experts.of(config)
    if experts is None or not _is_sparse(config, index):
        return _gated("mlp", h, f)
    m = config.get("moe_intermediate_size") or f
    found: Shapes = {
        "mlp.gate.weight": (experts.count, h),
        "mlp.experts.gate_up_proj": (experts.count, 2 * m, h),
        "mlp.experts.down_proj": (experts.count, h, m),
    }
    if shared := config.get("shared_expert_intermediate_size"):
        found |= _gated("mlp.shared_expert", h, shared) | {"mlp.shared_expert_gate.weight": (1, h)}
    if shared := config.get("n_shared_experts"):
        found |= _gated("mlp.shared_experts", h, shared * m)
    return found


def _is_sparse(config: Mapping[str, Any], index: int) -> bool:
    """Whether the block has experts: the first ones, or every second one, may be dense."""
    if index < (config.get("first_k_dense_replace") or 0) or index in (config.get("mlp_only_layers") or ()):
        return False
    return (index + 1) % (config.get("decoder_sparse_step") or 1) == 0


def _gated(name: str, h: int, f: int) -> Shapes:
    return {f"{name}.gate_proj.weight": (f, h), f"{name}.up_proj.weight": (f, h), f"{name}.down_proj.weight": (h, f)}
