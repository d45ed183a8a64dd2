"""Machines and jobs that kernels are chosen for, and kernels that are wrong in one way each."""

from __future__ import annotations

from dataclasses import replace

from finetune_trainer.kernels import candidates
from tests.support import kernel_doubles as doubles

INSTALLED = {"torch": "2.13.0", "flash-attn": "2.8.3", "flash-attn-3": "3.0.0", "liger-kernel": "0.8.5"}
H100 = candidates.Machine("cuda", (9, 0), INSTALLED)
A100 = replace(H100, capability=(8, 0))
PACKED = candidates.Job("lora", "bfloat16", packing=True, compiled=False)
WRONG = [
    (doubles.leaky, "its output is off by"),
    (doubles.raising, "it failed: RuntimeError: FlashAttention only supports Ampere GPUs or newer."),
    (doubles.not_a_number, "its output is not finite"),
    (doubles.forgetful, "its gradient of keys is off by 0.5"),
    (doubles.a_little_more, "its output is off by 0.01"),
    (doubles.ignoring_windows, "its output is off by"),
    (doubles.ignoring_the_scale, "its output is off by"),
]
"""Attention kernels, and what is said about each."""
