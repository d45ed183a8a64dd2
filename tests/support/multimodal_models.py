"""Tiny models of classes that have towers for pictures beside a language model; the tower is deeper than the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny_model import tiny_tokenizer

TEXT: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": 257, "eos_token_id": 258,
    "pad_token_id": 258,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_QWEN_TOWER = {"depth": 5, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
_WINDOWED = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True, "rope_theta": 1e4}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0},
}  # fmt: skip
_PER_LAYER = {
    **_WINDOWED, "global_head_dim": 8, "num_global_key_value_heads": 2, "vocab_size_per_layer_input": 264,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "Gemma3": {"text_config": {**TEXT, **_WINDOWED}, "vision_config": TOWER, "mm_tokens_per_image": 4},
    "Gemma4": {
        "text_config": {**TEXT, **_PER_LAYER},
        "vision_config": {**TOWER, "head_dim": 8, "num_key_value_heads": 2},
        "audio_config": None,
    },
    "Mistral3": {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 8},
    },
    "Qwen2_5_VL": {
        "text_config": {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        "vision_config": _QWEN_TOWER,
    },
    "Qwen3_5": {
        "text_config": {**TEXT, **_LINEAR},
        "vision_config": {**_QWEN_TOWER, "num_position_embeddings": 16},
    },
    "Qwen3VL": {
        "text_config": {**TEXT, "rope_parameters": _ROPE},
        "vision_config": {**_QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [1, 2]},
    },
    "Llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**TOWER, "model_type": "clip_vision_model"},
    },
}


def tower_model(folder: Path, family: str, *, dtype: str = "float32", seed: int = 0, processor: bool = True) -> Path:
    """`<family>ForConditionalGeneration` with its tokenizer, and a processor's configuration, in `folder`."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**SHAPES[family])
    network = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("layer_scalar"):
                tensor.fill_(0.75)  # what trained models have, and constructors do not make
    network.to(getattr(torch, dtype)).save_pretrained(folder)
    tiny_tokenizer(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text('{"size": 28}\n')
    return folder
