"""Whether the trainer is right on this device: its numbers beside those of a CPU, and each way to train."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from typing import Any

from tests.gpu.kit import Kit
from tests.gpu.notes import Check, at_most, holds
from tests.gpu.workshop import Desk

METHODS: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "partial": {"type": "partial", "partial": {"layers": 1}},
    "lora": {"type": "lora"},
    "dora": {"type": "dora"},
    "adapter": {"type": "adapter"},
    "prefix": {"type": "prefix"},
    "prompt": {"type": "prompt"},
    "ptuning": {"type": "ptuning"},
    "qlora": {"type": "qlora"},
}
PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "huggingface-hub", "triton", "pydantic",
    "obstore", "numpy", "trl", "datasets", "liger-kernel", "bitsandbytes", "deepspeed", "flash-attn", "flash-attn-3",
)  # fmt: skip


def machine(kit: Kit) -> None:
    """What is here, and whether everybody sees the same device."""
    import torch

    from finetune_trainer.planning.devices import GPUS
    from finetune_trainer.planning.machine import gpu_memory
    from finetune_trainer.train.kernel_selection import machine as kernels_machine

    kit.notes.fact("versions", {name: _version(name) for name in PACKAGES if _version(name)})
    kit.notes.fact("tf32", {
        "cuda.matmul": torch.backends.cuda.matmul.allow_tf32, "precision": torch.get_float32_matmul_precision(),
    })  # fmt: skip
    kit.notes.fact("smi", smi := _nvidia_smi())
    if not kit.on_gpu:
        kit.notes.fact("device", "CPU")
        kit.notes.check(Check("a GPU is seen", "skipped" if kit.rehearsal else "failed", words="torch sees none"))
        return
    properties = torch.cuda.get_device_properties(kit.device)
    kit.notes.fact("device", properties.name)
    kit.notes.fact("memory", properties.total_memory)
    kit.notes.fact("capability", list(kernels_machine(kit.device).capability))
    kit.notes.fact("cuda", torch.version.cuda)
    kit.notes.fact("nccl", ".".join(map(str, torch.cuda.nccl.version())))
    kit.notes.fact("multiprocessors", properties.multi_processor_count)
    kit.notes.check(holds("products in float32 are of float32", not torch.backends.cuda.matmul.allow_tf32))
    asked = gpu_memory()
    kit.notes.check(holds("the driver is asked for its memory", bool(asked), f"{len(asked)} GPUs"))
    known = next((device for device in GPUS if device.name.lower() in properties.name.lower()), None)
    kit.notes.check(holds("the plan knows the device", known is not None, properties.name))
    if known is not None:
        words = f"{known.memory / 2**30:.0f} GiB planned, {properties.total_memory / 2**30:.1f} seen by torch"
        apart = abs(known.memory / properties.total_memory - 1)
        kit.notes.check(at_most("the plan's memory of the device", apart, 0.02, words=words))
    if asked:
        apart = abs(asked[0] / properties.total_memory - 1)
        kit.notes.check(at_most("the driver's memory is torch's", apart, 0.02))
    if smi:
        kit.notes.check(holds("nvidia-smi's name is torch's", smi["name"] == properties.name, smi["name"]))
        apart = abs(smi["memory_mib"] * 2**20 / properties.total_memory - 1)
        kit.notes.check(at_most("nvidia-smi's memory is torch's", apart, 0.02))


def reference(kit: Kit) -> None:
    """The right losses: every run in float32 on a CPU, which is where all other tests of the trainer run."""
    desk = Desk.of(kit.folder("desk"), kit.sizes, steps=kit.sizes.steps)
    for method in ("full", "lora"):
        kit.notes.fact(method, desk.run(method, method=method).losses)
    few = Desk(desk.folder, kit.sizes.few)
    for name, method in _methods(kit):
        kit.notes.fact(f"{name}/few", few.run(f"{name}-few", method=method).losses)


def numbers(kit: Kit) -> None:
    """The same runs here; `judge` holds them against the reference."""
    desk = Desk.of(kit.folder("desk"), kit.sizes, steps=kit.sizes.steps)
    for method in ("full", "lora"):
        kit.notes.fact(f"{method}/float32", desk.run(f"{method}-32", method=method).losses)
        unpacked = desk.run(f"{method}-unpacked", method=method, data={"packing": False})
        kit.notes.fact(f"{method}/unpacked", unpacked.losses)
        low = desk.run(f"{method}-16", method=method, training={"precision": "bfloat16"})
        kit.notes.fact(f"{method}/bfloat16", low.losses)
        kit.notes.fact(f"{method}/computed", low.computed)


def methods(kit: Kit) -> None:
    """Each way to adapt a model, as a GPU would by itself: bfloat16, and whatever kernels prove right."""
    desk = Desk.of(kit.folder("desk"), kit.sizes, steps=kit.sizes.few)
    for name, method in _methods(kit):
        try:
            ran = desk.run(name, method=method, training={"precision": "bfloat16"})
        except Exception as error:
            kit.notes.check(Check(f"{name} trains", "failed", words=f"{type(error).__name__}: {error}"[:300]))
            continue
        kit.notes.fact(f"{name}/few", ran.losses)
        whole = (ran.folder / "manifest.json").is_file()
        kit.notes.check(holds(f"{name} trains", whole, f"{ran.seconds:.1f} s; {ran.computed}"))
    if "qlora" not in dict(_methods(kit)):
        kit.notes.check(Check("qlora trains", "skipped", words="bitsandbytes is not installed"))


def compiled(kit: Kit) -> None:
    """training.compile on and off, in both precisions."""
    desk = Desk.of(kit.folder("desk"), kit.sizes, steps=kit.sizes.few)
    with kit.compiler():
        for precision in ("bfloat16",) if kit.rehearsal else ("float32", "bfloat16"):
            without = desk.run(f"{precision}-without", training={"precision": precision})
            ran = desk.run(f"{precision}-compiled", training={"precision": precision, "compile": True})
            kit.notes.fact(f"{precision}/plain", without.losses)
            kit.notes.fact(f"{precision}/compiled", ran.losses)
            kit.notes.fact(f"{precision}/seconds", ran.seconds)


def _methods(kit: Kit) -> list[tuple[str, dict[str, Any]]]:
    there = importlib.util.find_spec("bitsandbytes") is not None
    wanted = ("full", "lora", "prefix") if kit.rehearsal and kit.part.name == "right/reference" else tuple(METHODS)
    return [(name, METHODS[name]) for name in wanted if name != "qlora" or there]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _nvidia_smi() -> dict[str, Any] | None:
    """What the driver's own tool says; None where there is none, or it may not be asked."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = "name,memory.total,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    environ = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environ, check=True).stdout
        values = [value.strip() for value in said.splitlines()[0].split(",")]
        return {
            "name": values[0], "memory_mib": float(values[1]), "driver": values[2], "clock": values[3],
            "most_clock": values[4], "power_limit": values[5], "temperature": values[6],
        }  # fmt: skip
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        print(f"nvidia-smi: {error}")
        return None
