"""What `finetune watch` shows of a job. Pure: a snapshot becomes a screen, or the lines that are new since the last."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.client import Event
from finetune_api.failures import FailureClass
from finetune_api.progress_text import measurements, percent, progress_line, span
from finetune_api.status import Phase, Progress
from finetune_api.text import printable

BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 24
CURVE = 48
SHOWN_EVENTS = 5
_STEP = re.compile(r"\bstep (\d+)/\d+ loss ([0-9.]+|nan|inf)\b")


class LossPoint(ApiModel):
    """Training loss at a step."""

    step: int
    loss: float


class Snapshot(ApiModel):
    """A job at one moment: one line of `finetune watch -o json`."""

    name: str = Field(description="Name of the job.")
    namespace: str = Field("", description="Its namespace; empty for a run on this machine.")
    phase: Phase = Field(description="Phase of the job.")
    activity: str = Field("", description="What a run on this machine does now: loading, training, evaluating, saving.")
    attempt: int | None = Field(None, description="Number of the current attempt.")
    nodes: int | None = Field(None, description="Nodes of the attempt.")
    gpus: int | None = Field(None, description="GPUs of the attempt; unset without any.")
    gpu_hours: float | None = Field(None, description="GPU hours of all attempts, on a cluster.")
    wasted_gpu_hours: float | None = Field(None, description="Part of gpuHours without result.")
    restarts: int = Field(0, description="Restarts so far.")
    progress: Progress = Field(
        default_factory=Progress, description="As in status.progress: step, loss, tokensPerSecond, etaSeconds."
    )
    curve: tuple[LossPoint, ...] = Field((), description="Training losses of the attempt by step, as far as known.")
    events: tuple[Event, ...] = Field((), description="The latest events, the last one last.")
    message: str = Field("", description="Why the job does not run, or what failed.")
    failure: FailureClass | None = Field(None, description="Class of the last failure.")
    artifact: str | None = Field(None, description="URI of the artifact.")


def points_in(log: str) -> tuple[LossPoint, ...]:
    """The loss curve in the log of rank 0: `step 12/120 loss 1.2340 …`."""
    return tuple(LossPoint(step=int(step), loss=float(loss)) for step, loss in _STEP.findall(log))


def with_progress(points: Sequence[LossPoint], progress: Progress) -> tuple[LossPoint, ...]:
    """The curve with the latest loss. A step that is made again replaces what followed it."""
    if progress.loss is None or (points and points[-1].step == progress.step):
        return tuple(points)
    before = [point for point in points if point.step < progress.step]
    return (*before, LossPoint(step=progress.step, loss=progress.loss))


def sparkline(values: Sequence[float], width: int) -> str:
    """[4, 3, 2, 1] → `█▆▃▁`. Means of neighbours if there are more values than columns; what is not finite is a `!`."""
    count = min(width, len(values))
    cells = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(cell) / len(cell) for cell in cells]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] if math.isfinite(mean) else "!" for mean in means)


def screen(now: Snapshot, *, width: int) -> list[str]:
    """The lines of a terminal that is `width` columns wide."""
    lines = [_head(now), *_progress(now), *_curve(now)]
    if now.message:
        lines.append(now.message)
    if now.artifact:
        lines.append(f"artifact  {now.artifact}")
    if now.events:
        lines += ["", *(_event_line(event) for event in now.events[-SHOWN_EVENTS:])]
    return [_cut(" ".join(printable(line).splitlines()), width) for line in lines]


def _head(now: Snapshot) -> str:
    parts = [f"{now.namespace}/{now.name}" if now.namespace else now.name, _state(now)]
    if now.attempt is not None:
        nodes = f", {now.nodes} {'node' if now.nodes == 1 else 'nodes'}" if now.nodes else ""
        nodes += f", {now.gpus} {'GPU' if now.gpus == 1 else 'GPUs'}" if now.gpus else ""
        restarts = f", {now.restarts} {'restart' if now.restarts == 1 else 'restarts'}" if now.restarts else ""
        parts.append(f"attempt {now.attempt}{nodes}{restarts}")
    return "  ".join(parts)


def _state(now: Snapshot) -> str:
    return f"{now.phase} ({now.activity})" if now.activity else str(now.phase)


def _progress(now: Snapshot) -> Iterator[str]:
    done = now.progress
    if done.total_steps:
        filled = BAR * percent(done) // 100
        step = f"step {done.step}/{done.total_steps} ({percent(done)} %)"
        yield f"{'█' * filled}{'░' * (BAR - filled)}  {step}{_left(now)}"
    facts = measurements(done)
    if now.gpu_hours is not None:
        facts.append(f"{now.gpu_hours:,.1f} GPU hours ({now.wasted_gpu_hours or 0:,.1f} wasted)")
    if facts:
        yield "  ".join(facts)


def _left(now: Snapshot) -> str:
    eta = now.progress.eta_seconds
    return f"  {span(eta)} left" if eta is not None and now.phase is Phase.Running else ""


def _curve(now: Snapshot) -> Iterator[str]:
    if len(now.curve) > 1:
        first, last = now.curve[0], now.curve[-1]
        drawn = sparkline([point.loss for point in now.curve], CURVE)
        yield f"{drawn}  loss {first.loss:.4g} at step {first.step} to {last.loss:.4g} at step {last.step}"


def _event_line(event: Event) -> str:
    time = event.time[11:19]
    times = f" ({event.count} times)" if event.count > 1 else ""
    mark = "!" if event.type == "Warning" else " "
    return f"{time:<8} {mark} " + ": ".join(part for part in (event.reason, event.message) if part) + times


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def new_lines(before: Snapshot | None, now: Snapshot, *, due: bool) -> Iterator[str]:
    """What a log or a pipe is shown: new events, changes of phase and attempt, and progress when it is `due`."""
    known = {(event.time, event.reason, event.message) for event in before.events} if before else set()
    for event in now.events:
        if (event.time, event.reason, event.message) not in known:
            yield _plain(now, f"event  {_event_line(event).strip()}")
    state = (now.phase, now.activity, now.attempt)
    moved = before is None or (before.phase, before.activity, before.attempt) != state
    if moved or (due and before is not None and before.progress != now.progress):
        yield _plain(now, progress_line(_state(now), now.progress) + _left(now))
    if now.message and (before is None or before.message != now.message):
        yield _plain(now, now.message)
    if now.artifact and (before is None or before.artifact != now.artifact):
        yield _plain(now, f"artifact  {now.artifact}")


def _plain(now: Snapshot, text: str) -> str:
    return f"{now.name}: {' '.join(printable(text).splitlines())}"
