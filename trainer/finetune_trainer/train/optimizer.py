"""The learning rate: its peak by method, and its course as a pure function of the step; the optimizer's name."""

from __future__ import annotations

import math
from typing import Literal

from finetune_api.spec import Optimizer

_OVER_FULL = {
    "full": 1.0,
    "partial": 1.0,  # the same weights, fewer of them
    "lora": 10.0,
    "qlora": 10.0,  # Dettmers et al. 2023 train at 2e-4 (7B, 13B), where the fit for LoRA says 2.9e-4 (8B)
    "dora": 10.0,  # PEFT's published comparison takes LoRA's rate for it
    "adapter": 10.0,  # Houlsby et al. 2019 choose from 3e-5, 3e-4 and 3e-3; the fit gives 2.9e-4 to 1.3e-3
}
"""Peak rate of each method, as a multiple of the one for all weights."""

_PROMPTS = {"prompt": 1e-3, "ptuning": 1e-4, "prefix": 5e-3}
"""Peak rates of methods that learn an input: those of the best runs in PEFT's published comparison (Llama-3.2-3B on
MetaMathQA), where a tenth as much (prompt) or a fifth (prefix) came to less than half the accuracy."""


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Of the step with this index, from 0. The warm-up's first step already moves; the last step still does."""
    warmup = min(total_steps, math.ceil(warmup_ratio * total_steps))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak * (1 - done) if schedule == "linear" else peak


def default_peak(*, method: str, hidden_size: int) -> float:
    """For AdamW: 5e-5 * (2000/width)^0.781 for all weights and ten times as much for LoRA (an empirical fit over Llama
    models, public in tinker-cookbook); the other methods by `_OVER_FULL` and `_PROMPTS`."""
    if method == "probe":
        return 0.0  # no step is made
    if method in _PROMPTS:
        return _PROMPTS[method]
    peak: float = 5e-5 * (2000 / hidden_size) ** 0.781
    return peak * _OVER_FULL[method]


def named(optimizer: Optimizer, *, strategy: str) -> str:
    """As the line says it that tells what runs."""
    if optimizer == "adamw8bit":
        return "AdamW with moments in 8 bits"
    return "AdamW" if strategy == "deepspeed" else "fused AdamW"
