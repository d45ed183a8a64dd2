"""`finetune watch NAME` or `finetune watch job.yaml`: follows a job on the cluster or a run on this machine, until it
is finished. On a terminal the screen is redrawn; elsewhere, one line per event."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TextIO

from finetune_api import accelerators, names
from finetune_api.client import Event, FineTuneJobs
from finetune_api.failures import CLASSES, ExitCode, FailureClass, FinetuneError, Reason
from finetune_api.job import FineTuneJob
from finetune_api.manifest import parse
from finetune_api.status import FineTuneJobStatus, Phase, Progress, Usage
from finetune_trainer.agent.home import Home
from finetune_trainer.cli.jobs import Where, find
from finetune_trainer.cli.logs import selector
from finetune_trainer.cli.text import why
from finetune_trainer.cli.watch_view import LossPoint, Snapshot, new_lines, points_in, screen, with_progress
from finetune_trainer.rundir import RunDir

LINE_SECONDS = 15.0
"""Interval between two progress lines."""
LOG_LINES = 5000
"""Lines of rank 0's log that are searched for earlier losses."""


def watch_target(target: str, where: Where, *, as_json: bool, every: float, once: bool) -> int:
    """Follows a job by its name, or by its manifest."""
    name, where = _named(target, where)
    if as_json:
        return watch(name, where, JsonLines(sys.stdout), every=every, once=once)
    on_terminal = sys.stdout.isatty()
    return watch(name, where, Screen(sys.stdout) if on_terminal else Lines(sys.stdout), every=every, once=once)


def _named(target: str, where: Where) -> tuple[str, Where]:
    """The name of a job, from its manifest if `target` is a file, with the manifest's namespace."""
    path = Path(target)
    if path.suffix not in (".yaml", ".yml", ".json"):
        return target, where
    try:
        metadata = parse(path.read_text(encoding="utf-8")).get("metadata") or {}
        name = str(metadata["name"])
    except (OSError, ValueError, KeyError) as error:
        message = f"{target} cannot be read as a manifest: {error}"
        raise FinetuneError(Reason.InvalidSpec, message, f"Check it with `finetune validate {target}`.") from error
    if metadata.get("namespace") and where.namespace is None:
        return name, Where(home=where.home, namespace=str(metadata["namespace"]), context=where.context)
    return name, where


class View(Protocol):
    """Where snapshots go."""

    def show(self, now: Snapshot) -> None: ...


@dataclass
class JsonLines:
    """One JSON object a line, for each change."""

    out: TextIO
    _last: Snapshot | None = None

    def show(self, now: Snapshot) -> None:
        if now != self._last:
            print(json.dumps(now.to_json()), file=self.out, flush=True)
        self._last = now


@dataclass
class Lines:
    """Plain lines, for logs, pipes and CI."""

    out: TextIO
    clock: Callable[[], float] = time.monotonic
    _last: Snapshot | None = None
    _printed_at: float = field(default=float("-inf"), repr=False)

    def show(self, now: Snapshot) -> None:
        due = self.clock() - self._printed_at >= LINE_SECONDS
        for line in new_lines(self._last, now, due=due):
            print(line, file=self.out, flush=True)
            self._printed_at = self.clock()
        self._last = now


@dataclass
class Screen:
    """A terminal, on which each snapshot replaces the one before."""

    out: TextIO
    _height: int = 0

    def show(self, now: Snapshot) -> None:
        lines = screen(now, width=max(20, shutil.get_terminal_size().columns - 1))
        back = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        self.out.write(back + "".join(f"{line}\n" for line in lines))
        self.out.flush()
        self._height = len(lines)


class Source(Protocol):
    """Where snapshots come from."""

    def look(self) -> Snapshot: ...

    def over(self, now: Snapshot) -> bool:
        """Whether nothing more will happen."""


@dataclass
class OnCluster:
    """A job of a cluster. Losses from before the first look are read once per attempt, from the log of rank 0."""

    name: str
    where: Where
    jobs: FineTuneJobs
    _curve: tuple[LossPoint, ...] = ()
    _attempt: int | None = None

    def look(self) -> Snapshot:
        job = self.jobs.get(self.name)
        status = job.status
        if status.attempt != self._attempt and job.phase in (Phase.Running, Phase.Succeeded, Phase.Failed):
            self._attempt, self._curve = status.attempt, points_in(self._log(status.attempt or 1))
        self._curve = with_progress(self._curve, job.progress)
        return _snapshot(job.object, curve=self._curve, events=self.jobs.events(self.name), namespace=job.namespace)

    def over(self, now: Snapshot) -> bool:
        return now.phase.terminal

    def _log(self, attempt: int) -> str:
        pods = selector(self.name, node=0, attempt=attempt)
        command = self.where.kubectl(
            "logs", "--selector", pods, "--container", names.CONTAINER, f"--tail={LOG_LINES}"
        )  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=False, errors="replace").stdout


@dataclass
class OnThisMachine:
    """A local run, from its run directory. Its events are the lines of the log that are not about a step."""

    name: str
    home: Home

    def look(self) -> Snapshot:
        job = self.home.load(self.name)
        if job is None:
            raise FinetuneError(Reason.NotFound, f"the run {self.name} is no longer in {self.home.path}")
        file = self.home.log(self.name, node=0, attempt=job.status.attempt or 1)
        log = file.read_text(errors="replace") if file.exists() else ""
        report = RunDir(self.home.node(self.name, 0)).report() if not self._ended(job.status) else None
        progress = report.progress if report is not None else job.status.progress or Progress()
        said = [line.strip() for line in log.splitlines() if line.strip() and not points_in(line)]
        events = tuple(Event(time="", type="Normal", reason="", message=line[:500]) for line in said[-20:])
        now = _snapshot(job, curve=with_progress(points_in(log), progress), events=events)
        return now.model_copy(update={"progress": progress, "activity": report.phase if report is not None else ""})

    def over(self, now: Snapshot) -> bool:
        return now.phase.terminal or now.phase is Phase.Suspended

    @staticmethod
    def _ended(status: FineTuneJobStatus) -> bool:
        return status.phase is not None and (status.phase.terminal or status.phase is Phase.Suspended)


def _snapshot(
    job: FineTuneJob, *, curve: tuple[LossPoint, ...], events: tuple[Event, ...], namespace: str = ""
) -> Snapshot:
    status = job.status
    message, failure = why(status), status.last_failure
    if failure is not None and status.phase in (Phase.Failed, Phase.Restarting):
        message = f"{failure.reason}: {failure.message} {failure.hint}".strip()
    usage = status.usage or Usage()
    each_node = sum(accelerators.devices(job.spec.resources.to_json().get("limits") or {}).values())
    return Snapshot(
        gpus=(status.nodes or 0) * each_node or None, gpu_hours=usage.gpu_hours if status.usage else None,
        wasted_gpu_hours=usage.wasted_gpu_hours if status.usage else None,
        name=job.metadata.name, namespace=namespace, phase=status.phase or Phase.Pending, attempt=status.attempt,
        nodes=status.nodes, restarts=status.restarts.total if status.restarts else 0,
        progress=status.progress or Progress(), curve=curve, events=events, message=message,
        failure=failure.failure_class if failure is not None else None,
        artifact=status.artifact.uri if status.artifact else None,
    )  # fmt: skip


def watch(name: str, where: Where, view: View, *, every: float, once: bool = False) -> int:
    """Shows the job until nothing more will happen. The exit status is 0, or that of the failure."""
    found = find(name, where)
    source: Source = (
        OnThisMachine(name, Home(where.home)) if found.local else OnCluster(name, where, where.jobs)
    )  # fmt: skip
    now = source.look()
    while True:
        view.show(now)
        if once or source.over(now):
            return ExitCode.OK if once else _status(now)
        time.sleep(every)
        try:
            now = source.look()
        except FinetuneError as error:
            if error.reason is not Reason.ClusterUnavailable:
                raise
            now = now.model_copy(update={"message": f"{error.message}; retrying"})


def _status(now: Snapshot) -> int:
    if now.phase is Phase.Suspended:
        return ExitCode.INTERRUPTED
    if now.phase is not Phase.Failed:
        return ExitCode.OK
    return CLASSES[now.failure or FailureClass.Internal].exit_code
