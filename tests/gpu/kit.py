"""The inside of a part: what it works with, and how its process begins and ends."""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import json
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.gpu.notes import Check, Notes
from tests.gpu.parts import Part, parts_of
from tests.gpu.sizes import CARD, REHEARSAL, Sizes

if TYPE_CHECKING:
    import torch

ENV_LIMIT = "FINETUNE_GPU_KIT_LIMIT"
"""Seconds that this process has."""


@dataclass(frozen=True)
class Kit:
    part: Part
    notes: Notes
    sizes: Sizes
    scratch: Path
    """Of this part alone."""
    out: Path
    rehearsal: bool
    doubles: bool
    """In place of rivals."""

    @cached_property
    def device(self) -> torch.device:
        from finetune_trainer.train.device import choose_device

        return choose_device(0)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @contextmanager
    def compiler(self) -> Iterator[None]:
        """In the rehearsal nothing is generated: what is compiled for CPUs is tested elsewhere, and takes a minute."""
        import torch

        plain = torch.compile

        def eager(function: Any, **_: Any) -> Any:
            return plain(function, backend="eager")

        with patch.object(torch, "compile", eager if self.rehearsal else plain):
            yield

    def folder(self, name: str) -> Path:
        made = self.scratch / name
        made.mkdir(parents=True, exist_ok=True)
        return made


def work(name: str, notes: Path, *, rehearsal: bool, doubles: bool, out: Path) -> int:
    """One part, from its first line to its last. What it raises is a failed check."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(1.0, float(os.environ.get(ENV_LIMIT, "60")) - 3))
    sizes = REHEARSAL if rehearsal else CARD
    part = next(part for part in parts_of(sizes) if part.name == name)
    kit = Kit(part, Notes(notes), sizes, notes.parent / "scratch" / name.replace("/", "-"), out, rehearsal, doubles)
    kit.scratch.mkdir(parents=True, exist_ok=True)
    os.environ["FINETUNE_CACHE"] = str(kit.scratch / "cache")
    module, _, function = part.function.partition(":")
    if missing := [package for package in part.needs if not _there(package, kit)]:
        kit.notes.check(Check(name, "skipped", words=f"not installed: {', '.join(missing)}"))
        return 0
    try:
        getattr(importlib.import_module(f"tests.gpu.{module}"), function)(kit, *part.arguments)
    except BaseException as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        kit.notes.check(Check(name, "failed", words=f"{type(error).__name__}: {first}"[:400]))
        return 1
    finally:
        below = resource.getrusage(resource.RUSAGE_CHILDREN)
        kit.notes.fact("cpu_seconds", round(time.process_time() + below.ru_utime + below.ru_stime, 1))
    return 0


def _there(package: str, kit: Kit) -> bool:
    rival = package in ("trl", "datasets") and kit.doubles
    return rival or importlib.util.find_spec(package) is not None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment(
    scratch: Path, environ: Mapping[str, str], *, part: Part, root: Path, rehearsal: bool
) -> dict[str, str]:
    """Of a part's process: nothing is fetched, nothing is written outside of `scratch`, and what computes does so as
    torch is delivered."""
    kept = {name: value for name, value in environ.items() if name not in _NOT_FOR_PARTS}
    paths = [str(root / "crds"), str(root / "trainer"), *filter(None, [environ.get("PYTHONPATH")])]
    paths += [environ[name] for name in part.beside if environ.get(name)]
    made = {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HOME": str(scratch / "home"),
        "USER": environ.get("USER", "kit"),
        "TMPDIR": str(scratch / "tmp"),
        "XDG_CACHE_HOME": str(scratch / "home" / ".cache"),
        "HF_HOME": str(scratch / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        # A machine without a network has no interface that NCCL or gloo would look for first.
        "NCCL_SOCKET_IFNAME": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_IB_DISABLE": "1",
        "NCCL_DEBUG": "WARN",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "DS_ACCELERATOR": "cpu" if rehearsal else "cuda",
        "OMP_NUM_THREADS": "1" if rehearsal else "4",
    }
    if part.cpu or rehearsal:
        made["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("home", "tmp", "hub", "triton", "inductor"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    return made


_NOT_FOR_PARTS = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
    "CUDA_LAUNCH_BLOCKING", "TORCH_COMPILE_DISABLE", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
    "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""What would change how torch computes, or tell a process that it is one of many."""


def interpreter() -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("run.py"))]


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
