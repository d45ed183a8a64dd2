"""Shapes of well-known models, and the specs and plans of jobs that train them, for the tests of planning."""

from __future__ import annotations

from typing import Any

from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.planning.model import ModelShape


def llama(
    *, hidden: int, layers: int, intermediate: int, key_value: int, vocabulary: int, tied: bool = True
) -> ModelShape:
    """The shapes that a Llama of these sizes has."""
    linears: dict[str, tuple[int, int]] = {}
    for i in range(layers):
        at = f"model.layers.{i}"
        linears |= {
            f"{at}.self_attn.q_proj.weight": (hidden, hidden),
            f"{at}.self_attn.k_proj.weight": (key_value, hidden),
            f"{at}.self_attn.v_proj.weight": (key_value, hidden),
            f"{at}.self_attn.o_proj.weight": (hidden, hidden),
            f"{at}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{at}.mlp.up_proj.weight": (intermediate, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, intermediate),
        }
    embeddings = vocabulary * hidden * (1 if tied else 2)
    norms = hidden * (2 * layers + 1)
    return ModelShape(
        hidden=hidden, layers=layers, vocabulary=vocabulary, intermediate=intermediate, key_value=key_value,
        query=hidden, parameters=sum(a * b for a, b in linears.values()) + embeddings + norms, linears=linears,
        blocks=(sum(a * b for a, b in linears.values()) // layers + 2 * hidden,) * layers,
    )  # fmt: skip


SMOLLM2 = llama(hidden=576, layers=30, intermediate=1536, key_value=192, vocabulary=49152)


LLAMA_3B = llama(hidden=3072, layers=28, intermediate=8192, key_value=1024, vocabulary=128256)


GIB = 1 << 30


LLAMA_8B = llama(hidden=4096, layers=32, intermediate=14336, key_value=1024, vocabulary=128256, tied=False)


EIGHT = {"nodes": 1, "processesPerNode": 8}


def spec(**changes: Any) -> FineTuneJobSpec:
    made = {
        "model": {"uri": "file:///model"},
        "data": {"train": [{"uri": "file:///train.jsonl"}]},
        "output": {"uri": "file:///output"},
    }
    return FineTuneJobSpec.model_validate({**made, **changes}, strict=False)


def plan(**changes: Any) -> RunPlan:
    made = spec(**changes)
    job = JobIdentity(namespace="test", name="tiny", uid="u")
    return RunPlan(job=job, nodes=made.max_nodes, processes_per_node=made.processes, spec=made)


MIXTRAL = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip
