"""The learning rate: its peak by method, and its course as a pure function of the step; the optimizer's name."""

from __future__ import annotations

import math
from typing import Literal

from finetune_api.methods import TRAITS
from finetune_api.spec import Optimizer


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """The rate of the step with this index, from 0. The first step of the warm-up and the last step both move."""
    warmup = min(total_steps, math.ceil(warmup_ratio * total_steps))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak * (1 - done) if schedule == "linear" else peak


def default_peak(*, method: str, hidden_size: int) -> float:
    """For AdamW: 5e-5 * (2000/width)^0.781 for all weights and ten times as much for LoRA (an empirical fit over Llama
    models, public in tinker-cookbook); other methods as their traits say. 0 where no step is made."""
    rate = TRAITS[method].rate
    if rate is None:
        return 0.0
    if rate.over_full is None:
        return rate.fixed or 0.0
    peak: float = 5e-5 * (2000 / hidden_size) ** 0.781
    return peak * rate.over_full


def named(optimizer: Optimizer, *, strategy: str) -> str:
    """The name that the log line shows."""
    if optimizer == "adamw8bit":
        return "8-bit AdamW"
    return "AdamW" if strategy == "deepspeed" else "fused AdamW"
