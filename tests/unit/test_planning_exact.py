"""The closed form against torch's MemTracker, which follows a step of the trainer's own code tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.methods import Lora, Method, Partial
from finetune_trainer.planning.memory import Precision, estimate
from finetune_trainer.planning.model import read_shape

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 192, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 2048,
    "tie_word_embeddings": True, "max_position_embeddings": 1024,
}  # fmt: skip

EXPERTS = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "moe_intermediate_size": 128,
    "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "precision", "tokens", "changes"),
    [
        (Method(type="full"), "float32", 512, {}),
        (Method(type="full"), "bfloat16", 256, {}),
        (Method(type="full"), "float32", 512, {"recomputed": True}),
        (Method(type="full"), "bfloat16", 256, {"recomputed": True}),
        (Method(type="full"), "float32", 256, {"optimizer": "adamw8bit"}),
        (Method(type="lora"), "float32", 512, {}),
        (Method(type="lora"), "bfloat16", 512, {}),
        (Method(type="lora"), "bfloat16", 512, {"recomputed": True}),
        (Method(type="lora", lora=Lora(dropout=0.1)), "float32", 256, {}),
        (Method(type="lora", lora=Lora(layers=1)), "float32", 512, {}),
        (Method(type="partial", partial=Partial(layers=2)), "float32", 512, {}),
        (Method(type="lora"), "bfloat16", 512, {"experts": True}),
    ],
    ids=lambda value: (
        value.type
        if isinstance(value, Method)
        else "-".join(value) or "plain"
        if isinstance(value, dict)
        else str(value)
    ),
)
def test_the_closed_form_is_within_10_percent_of_the_tracker(
    tmp_path: Path, method: Method, precision: Precision, tokens: int, changes: dict[str, Any]
) -> None:
    from finetune_trainer.train.exact_memory import tracked

    """Of experts torch's products can be followed in bf16 alone."""
    experts = {**CONFIG, **EXPERTS} if changes.get("experts") else CONFIG
    changes = {name: value for name, value in changes.items() if name != "experts"}
    (tmp_path / "config.json").write_text(json.dumps(experts))
    shape = read_shape(tmp_path, weightless=True)
    need = estimate(shape, method, precision=precision, device="cpu", tokens=tokens, row=tokens, **changes)

    followed = tracked(tmp_path, method, precision=precision, tokens=tokens, **changes)
    assert need.peak == pytest.approx(followed, rel=0.10)
