"""`finetune top`: the running jobs of a cluster by GPUs, with progress, speed, GPU hours and cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from finetune_api import accelerators
from finetune_api.client import Job
from finetune_api.client.job import HOLDING
from finetune_api.failures import ExitCode
from finetune_api.progress_text import percent, span
from finetune_api.status import Phase, Progress, Usage
from finetune_api.text import printable
from finetune_trainer.cli.jobs import Where
from finetune_trainer.cli.text import table


@dataclass(frozen=True, kw_only=True)
class Line:
    """A job of the table. None: unknown."""

    namespace: str
    name: str
    phase: str
    nodes: int
    gpus: int
    percent: int | None
    eta_seconds: int | None
    tokens_per_second: float | None
    restarts: int
    gpu_hours: float | None
    wasted_gpu_hours: float | None
    money: float | None
    currency: str | None

    def to_json(self) -> dict[str, Any]:
        names = {"eta_seconds": "etaSeconds", "tokens_per_second": "tokensPerSecond", "gpu_hours": "gpuHours"}
        names["wasted_gpu_hours"] = "wastedGpuHours"
        return {names.get(key, key): value for key, value in vars(self).items() if value is not None}


def show_top(where: Where, *, everywhere: bool, all_phases: bool, as_json: bool) -> int:
    """Prints the jobs that hold GPUs; with `all_phases` also those that wait or have ended."""
    lines = [read(job) for job in where.jobs.list(all_namespaces=everywhere)]
    lines = [line for line in lines if all_phases or line.phase in HOLDING]
    lines.sort(key=lambda line: (-line.gpus, line.namespace, line.name))
    if as_json:
        print(json.dumps([line.to_json() for line in lines], indent=2))
    else:
        print(printable(text(lines)))
    return ExitCode.OK


def read(listed: Job) -> Line:
    """One job of a list."""
    job = listed.object
    status, progress = job.status, job.status.progress or Progress()
    usage = status.usage or Usage()
    phase = status.phase or Phase.Pending
    nodes = (status.nodes or job.spec.max_nodes) if phase in HOLDING else 0
    devices = accelerators.devices(job.spec.resources.to_json().get("limits") or {})
    running = phase is Phase.Running
    return Line(
        namespace=job.metadata.namespace or "",
        name=job.metadata.name,
        phase=phase.value,
        nodes=nodes,
        gpus=nodes * sum(devices.values()),
        percent=percent(progress) if progress.total_steps or progress.percent is not None else None,
        eta_seconds=progress.eta_seconds if running else None,
        tokens_per_second=progress.tokens_per_second if running else None,
        restarts=status.restarts.total if status.restarts else 0,
        gpu_hours=usage.gpu_hours if status.usage else None,
        wasted_gpu_hours=usage.wasted_gpu_hours if status.usage else None,
        money=usage.money,
        currency=usage.currency,
    )


def text(lines: Iterable[Line]) -> str:
    """The table, and a line with the sums of GPUs, GPU hours and money."""
    lines = list(lines)
    if not lines:
        return "no running jobs"
    head = ("job", "phase", "nodes", "GPUs", "done", "left", "tok/s", "restarts", "GPU hours", "wasted", "cost")
    sums = f"{_count(len(lines), 'job')}, {_count(sum(line.gpus for line in lines), 'GPU')}"
    hours = sum(line.gpu_hours or 0.0 for line in lines)
    wasted = sum(line.wasted_gpu_hours or 0.0 for line in lines)
    spent: dict[str, float] = {}
    for line in lines:
        if line.money is not None:
            spent[line.currency or ""] = spent.get(line.currency or "", 0.0) + line.money
    money = "".join(f", {amount:,.2f} {currency}".rstrip() for currency, amount in sorted(spent.items()))
    rows = table(head, [_cells(line) for line in lines], indent="")
    return f"{rows}\n\n{sums}, {hours:,.1f} GPU hours ({wasted:,.1f} wasted){money}"


def _cells(line: Line) -> tuple[str, ...]:
    return (
        f"{line.namespace}/{line.name}" if line.namespace else line.name,
        line.phase,
        str(line.nodes),
        str(line.gpus),
        "" if line.percent is None else f"{line.percent} %",
        "" if line.eta_seconds is None else span(line.eta_seconds),
        "" if line.tokens_per_second is None else f"{line.tokens_per_second:,.0f}",
        str(line.restarts),
        "" if line.gpu_hours is None else f"{line.gpu_hours:,.1f}",
        "" if not line.gpu_hours else f"{100 * (line.wasted_gpu_hours or 0.0) / line.gpu_hours:.0f} %",
        "" if line.money is None else f"{line.money:,.2f} {line.currency or ''}".rstrip(),
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
