"""Which kernels could be had in place of the reference, best first, or why there is none: a table, and no I/O.

Reasons against a kernel before it is run come from its documentation; whether it is right is not asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finetune_api.methods import TRAITS

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Machine:
    device: str
    """cpu, cuda, …"""
    capability: tuple[int, int]
    """Compute capability of the GPU; (0, 0) without one."""
    installed: Mapping[str, str]
    """Package to version, of those that were found."""


@dataclass(frozen=True)
class Job:
    method: str
    dtype: Dtype
    """The dtype of products."""
    packing: bool
    """Documents share rows."""
    compiled: bool
    wish: Literal["auto", "reference"] = "auto"
    attention: str = "sdpa"
    """What the network was loaded with."""
    fused_head: bool = True
    """Logits are hidden states times one matrix."""
    trains_rows: bool = False
    """Of the head's matrix a few rows train (`spec.vocabulary`)."""


@dataclass(frozen=True)
class Offer:
    kernels: tuple[str, ...] = ()
    """Best first."""
    because: str = ""
    """In a few words: why there is none. Empty where none would be expected."""


PACKAGES = ("flash-attn-3", "flash-attn", "torch", "liger-kernel")
"""The packages' names on PyPI."""

_OLDEST = {"flash-attn": (2, 4, 1), "liger-kernel": (0, 8)}
"""flash-attn computes the same gradients twice since then; of liger-kernel this is what was read and tried."""


def attention(machine: Machine, job: Job) -> Offer:
    """For packed rows. Without them a plain causal kernel runs, which torch's sdpa has itself."""
    if machine.device != "cuda" or job.wish == "reference":
        return Offer()
    traits = TRAITS[job.method]
    against = {
        f"method {job.method} has masks of its own": traits.virtual == "cache",
        f"method {job.method} makes no steps": not traits.steps,
        "one document per row": not job.packing,
        f"the model needs {job.attention}": job.attention != "sdpa",
        "blocks are compiled": job.compiled,
        "flash attention knows no float32": job.dtype == "float32",
        "the GPU is older than compute capability 8.0": machine.capability < (8, 0),
    }
    for because, holds in against.items():
        if holds:
            return Offer(because=because)
    hopper = machine.capability[0] == 9
    wanted = (*(("flash-attn-3",) if hopper else ()), "flash-attn", "torch")
    return Offer(tuple(name for name in wanted if not _lacks(machine, name)))


def loss(machine: Machine, job: Job) -> Offer:
    if machine.device != "cuda" or job.wish == "reference":
        return Offer()
    if not TRAITS[job.method].steps:
        return Offer(because=f"method {job.method} makes no steps")
    if not job.fused_head:
        return Offer(because="logits are more than one matrix")
    if job.trains_rows:
        return Offer(because="rows of the head train")
    if lacks := _lacks(machine, "liger-kernel"):
        return Offer(because=lacks)
    return Offer(("liger-kernel",))


def _lacks(machine: Machine, name: str) -> str:
    version = machine.installed.get(name)
    if version is None:
        return f"{name} is not installed"
    if _numbers(version) < _OLDEST.get(name, ()):
        return f"{name} {version} is older than {'.'.join(map(str, _OLDEST[name]))}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """2.8.3.post2 to (2, 8, 3)."""
    parts = version.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())
