"""What this machine gives: memory of the container or host, the OOM killer's count, memory of the GPUs. No torch."""

from __future__ import annotations

import ctypes
import math
import os
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


def memory_limit(*, cgroups: Path = CGROUPS) -> int:
    """Bytes that the processes of this node may use together: the tightest of cgroup limit and physical memory."""
    limits = [int(psutil.virtual_memory().total)]
    for folder in _cgroup_folders(cgroups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min(limits)


def oom_kills(*, cgroups: Path = CGROUPS) -> int:
    """Number of OOM kills in this container; 0 if there is no counter."""
    for folder in _cgroup_folders(cgroups):
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError, ValueError):
                counts = dict(line.split(None, 1) for line in (folder / name).read_text().splitlines())
                if "oom_kill" in counts:
                    return int(counts["oom_kill"])
    return 0


def _cgroup_folders(root: Path) -> list[Path]:
    """This process's cgroup and its parents, v2 or v1. Inside a container both look like the root."""
    folders = [root, root / "memory"]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            base = root if not controllers else root / "memory"
            if not controllers or "memory" in controllers.split(","):
                own = base / path.lstrip("/")
                folders = [own, *(parent for parent in own.parents if parent.is_relative_to(root)), *folders]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpu_memory() -> list[int]:
    """Total bytes of each visible NVIDIA GPU, asked of the driver's NVML library; empty without a driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    totals = []
    for index in range(count.value):
        device, memory = ctypes.c_void_p(), _NvmlMemory()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0:
            nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
            totals.append(int(memory.total))
    nvml.nvmlShutdown()
    return totals


def cpu_count(*, cgroups: Path = CGROUPS) -> int:
    """Cores that this process may use: its affinity, and the container's quota rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders(cgroups):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)
