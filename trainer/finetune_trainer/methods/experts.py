"""Mixtures of experts: how many a block has and a token passes, and which layers of their blocks an adapter reaches.

transformers keeps the experts of a block in one tensor for each projection, (experts, out, in), which is not a
torch.nn.Linear: adapters of linear layers do not reach them. Our adapters do not reach what chooses among them,
for servers apply no adapter there. And of families that it knows from before PEFT takes `up_proj` and its like for the
experts' (convert_peft_config_for_transformers), here and whenever a user loads the adapter: the feed-forward networks
next to the experts cannot be named then, and stay as they are too. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_COUNT = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PASSED = ("num_experts_per_tok", "moe_k", "moe_topk")

TAKEN_BY_PEFT = frozenset(
    {
        "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
        "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash",
        "mellum", "olmoe", "qwen3_moe", "qwen3_next", "sarvam_mla", "solar_open",
    }
)  # fmt: skip
"""Model types of causal language models of which PEFT takes these names for the experts':"""
_EXPERTS_NAMES = frozenset({"gate_proj", "up_proj", "down_proj"})

_ROUTER = re.compile(r"\.(gate|router)(\.|$)")


@dataclass(frozen=True)
class Experts:
    """Of each block that has some."""

    count: int
    passed: int
    """Those that a token passes through."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Experts | None:
        """From config.json; None for a dense model, and for one that names its experts in an unknown way."""
        count, passed = _first(config, _COUNT), _first(config, _PASSED)
        return cls(count, min(passed, count)) if count > 1 and passed > 0 else None

    def has(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is an expert's, or all experts' in one."""
        return ".experts." in name or (len(shape) == 3 and shape[0] == self.count)


def has_experts(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Of a model, by its config.json and the names of its parameters."""
    return Experts.of(config) is not None or any(".experts." in name for name in names)


def is_reached(name: str, *, model_type: str) -> bool:
    """Whether an adapter may be attached to the linear layer of this name, in a model with experts."""
    parts = name.removesuffix(".weight").split(".")
    taken = model_type in TAKEN_BY_PEFT and parts[-1] in _EXPERTS_NAMES
    return not taken and "experts" not in parts and not _ROUTER.search(name)


def is_forward(name: str) -> bool:
    """Whether a matrix of a block is of its feed-forward network or experts: neither attention nor what chooses."""
    return not re.search("attn|attention", name) and not _ROUTER.search(name)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
