"""Where a step's time goes: one profiler pass, read event by event."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.gpu.arithmetic import busy
from tests.gpu.kit import Kit
from tests.gpu.workshop import Drive, prepared

TOP, GAPS = 15, 5
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""Calls in which the host stands still until the GPU has done something; `.item()` ends in the first one."""
_OURS = 2
"""Waits that the profiler and the kit make themselves, around all steps."""


@dataclass(frozen=True)
class Event:
    name: str
    start: int
    """Nanoseconds."""
    end: int
    on_gpu: bool


def timeline(kit: Kit, name: str) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    load, first = kit.sizes.loads[name], kit.sizes.warm
    last = first + kit.sizes.profiled
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if kit.on_gpu else [])]
    profiler = profile(activities=activities)

    def watch(step: int) -> None:
        if step == first:
            if kit.on_gpu:
                torch.cuda.synchronize(kit.device)
            profiler.start()
        if step == last:
            if kit.on_gpu:
                torch.cuda.synchronize(kit.device)
            profiler.stop()

    folder = prepared(kit.folder(name), load, steps=last)
    Drive(load, folder, kit.device, last, watch).go()
    events = read(profiler)
    if not kit.on_gpu:  # what a CPU computes is its own kernel
        events = [Event(e.name, e.start, e.end, e.name.startswith("aten::")) for e in events]
    kit.notes.fact("title", load.title)
    for key, value in account(events, steps=kit.sizes.profiled).items():
        kit.notes.fact(key, value)


def read(profiler: Any) -> list[Event]:
    """From the profiler's own records: its tables sum up, and lose where gaps are."""
    import torch

    cuda = torch._C._autograd.DeviceType.CUDA
    found = profiler.profiler.kineto_results.events()
    return [
        Event(e.name(), e.start_ns(), e.start_ns() + e.duration_ns(), e.device_type() == cuda)
        for e in found
        if e.duration_ns() > 0
    ]


def account(events: Sequence[Event], *, steps: int) -> dict[str, Any]:
    """Shares of the time in which the GPU works, the time in which it waits, and how often the host does."""
    kernels = [event for event in events if event.on_gpu]
    if not kernels:
        return {"kernels": [], "syncs_a_step": _waits(events, steps)}
    worked, gaps = busy([(event.start, event.end) for event in kernels])
    span = max(event.end for event in kernels) - min(event.start for event in kernels)
    return {
        "steps": steps,
        "seconds_a_step": span / 1e9 / steps,
        "idle_share": 1 - worked / span,
        "kernels": _top(kernels),
        "launches_a_step": len(kernels) / steps,
        "gaps": _largest(gaps, kernels),
        "waits": _counted(event.name for event in events if event.name in WAITS),
        "syncs_a_step": _waits(events, steps),
    }


def _top(kernels: Sequence[Event]) -> list[dict[str, Any]]:
    spent: dict[str, int] = defaultdict(int)
    for event in kernels:
        spent[event.name] += event.end - event.start
    total, calls = sum(spent.values()), _counted(event.name for event in kernels)
    first = sorted(spent, key=lambda name: -spent[name])[:TOP]
    return [
        {"name": name[:160], "share": spent[name] / total, "milliseconds": spent[name] / 1e6, "calls": calls[name]}
        for name in first
    ]


def _largest(gaps: Sequence[tuple[int, int]], kernels: Sequence[Event]) -> list[dict[str, Any]]:
    before, after = {event.end: event.name for event in kernels}, {event.start: event.name for event in kernels}
    longest = sorted(gaps, key=lambda gap: gap[0] - gap[1])[:GAPS]
    return [
        {"microseconds": (end - start) / 1e3, "after": before[start][:80], "before": after[end][:80]}
        for start, end in longest
    ]


def _waits(events: Sequence[Event], steps: int) -> float:
    return max(0, sum(event.name in WAITS for event in events) - _OURS) / steps


def _counted(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return dict(counts)
