"""What devices can do: the makers' peak figures, and this machine by a measurement of a tenth of a second.

Dense figures, without sparsity: NVIDIA's data sheets of H100 SXM5 (989 TFLOPS bf16, 67 fp32, 3.35 TB/s, NVLink 900 GB/s
both ways), H200 SXM (the same with 141 GB at 4.8 TB/s), A100 80GB SXM4 (312, 19.5, 2.039 TB/s, 600 GB/s) and L40S (362,
91.6, 864 GB/s, PCIe 4 x16 64 GB/s).
Memory is what the driver reports: 46,068 MiB of an L40S with ECC.
fp32 is that of plain products: PyTorch leaves TF32 off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.planning.memory import Precision

THIS_MACHINE = "this machine"
"""Name of its CPUs."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one process computes on."""

    name: str
    kind: Literal["cpu", "cuda"]
    memory: int
    """Bytes."""
    bf16: float
    """Operations a second, at the peak."""
    fp32: float
    bandwidth: float
    """Memory bandwidth, in bytes per second."""
    link: float
    """Bandwidth to the other devices of its node, in bytes per second in one direction."""
    utilisation: float
    """Share of the peak that a transformer's passes reach, with many tokens at once."""
    ramp: float
    """Tokens at once at which half of that is reached."""

    def peak(self, precision: Precision) -> float:
        return self.bf16 if precision == "bfloat16" else self.fp32

    def shared(self, share: float) -> Device:
        """A part of it, for one of several processes that share it: 0.5 is half of its memory and of its rates."""
        return replace(
            self, memory=int(self.memory * share), bf16=self.bf16 * share, fp32=self.fp32 * share,
            bandwidth=self.bandwidth * share, link=self.link * share,
        )  # fmt: skip


def _gpu(name: str, *, gib: int, bf16: float, fp32: float, bandwidth: float, link: float) -> Device:
    # 0.35 and 1000 meet both public anchors: Llama-3.1-8B in full on H100s with FSDP at 8192 tokens, 5762 tokens/s each
    # (torchtitan); Llama-3.2-3B on an L40S at 840 tokens a step, LoRA 4457 and full 1955 tokens/s (PEFT's comparison).
    return Device(
        name=name, kind="cuda", memory=gib << 30, bf16=bf16, fp32=fp32, bandwidth=bandwidth, link=link,
        utilisation=0.35, ramp=1000,
    )  # fmt: skip


GPUS = (
    _gpu("H200", gib=140, bf16=989e12, fp32=67e12, bandwidth=4.8e12, link=450e9),
    _gpu("H100", gib=80, bf16=989e12, fp32=67e12, bandwidth=3.35e12, link=450e9),
    _gpu("A100-80", gib=80, bf16=312e12, fp32=19.5e12, bandwidth=2.039e12, link=300e9),
    _gpu("L40S", gib=45, bf16=362e12, fp32=91.6e12, bandwidth=0.864e12, link=32e9),
)


def gpu(name: str, *, memory: int | None = None) -> Device:
    """By its name, in any case. InvalidSpec for one that is not in the table."""
    for device in GPUS:
        if device.name.lower() == name.lower():
            return device if memory is None else replace(device, memory=memory)
    known = ", ".join(device.name for device in GPUS)
    raise FinetuneError(Reason.InvalidSpec, f"no figures are known of GPU {name}", f"Known: {known}.")


def nameless(kind: Literal["cpu", "cuda"], *, memory: int) -> Device:
    """Of which only the memory matters."""
    return Device(name=kind, kind=kind, memory=memory, bf16=1, fp32=1, bandwidth=1, link=1, utilisation=1, ramp=1)


def this_machine(*, memory: int, processes: int) -> Device:
    """One of `processes` that share this machine's cores and memory."""
    import numpy as np

    size = 768
    left = np.ones((size, size), np.float32)
    product = _seconds(lambda: left @ left)
    buffer = np.ones(8 << 20, np.float32)
    copy = _seconds(lambda: buffer.copy())
    rate = 2 * size**3 / product / processes
    bandwidth = 2 * buffer.nbytes / copy / processes
    # 77 to 79 % of the peak were measured on SmolLM2-135M with 1024 tokens. bf16 is emulated where there is no AMX.
    return Device(
        name=THIS_MACHINE, kind="cpu", memory=memory // processes, bf16=rate / 8, fp32=rate, bandwidth=bandwidth,
        link=bandwidth, utilisation=0.75, ramp=32,
    )  # fmt: skip


def _seconds(work: Callable[[], object], *, tries: int = 4) -> float:
    best = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
