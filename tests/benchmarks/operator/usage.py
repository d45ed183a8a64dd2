"""What processes cost: CPU seconds and the most memory that they had, as Linux counts them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Meter:
    """Of named processes, from its making on."""

    pids: Mapping[str, int]
    begin: Mapping[str, float]

    @staticmethod
    def of(pids: Mapping[str, int]) -> Meter:
        return Meter(pids, {name: cpu_seconds(pid) for name, pid in pids.items()})

    def cpu(self) -> dict[str, float]:
        return {name: round(cpu_seconds(pid) - self.begin[name], 2) for name, pid in self.pids.items()}

    def peak(self) -> dict[str, int]:
        """MiB since each process began."""
        return {name: peak_mebibytes(pid) for name, pid in self.pids.items()}


def cpu_seconds(pid: int) -> float:
    """User and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mebibytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
