"""The run directory: how the ranks of one node and their agent talk, by small files and never by network.

    plan.json            the RunPlan (local runs; in a pod it is mounted at /etc/finetune/plan.json)
    stop                 agent → ranks: write a checkpoint and end; holds the reason
    heartbeat/<rank>     rank → agent: {"phase", "step", "time"}, rewritten at each step and each change of phase
    report.json          global rank 0 → agent: a TrainerReport, at most once a second and at each change of phase
    errors/<rank>.json   rank → agent: the TerminationMessage of a rank that ended without success
    result.json          global rank 0 → agent: the TerminationMessage of a run that succeeded

Every file is written under a temporary name and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.failures import TerminationMessage
from finetune_api.plan import ProgressReport

M = TypeVar("M", bound=ApiModel)


class Heartbeat(ApiModel):
    phase: str
    step: int = 0
    time: float = Field(description="Unix seconds.")


class TrainerReport(ProgressReport):
    """What rank 0 knows beyond the progress that the operator reads; the agent's /metrics show it."""

    epoch: float = 0.0
    learning_rate: float | None = None
    gradient_norm: float | None = None
    trained_tokens: int = 0
    last_step_time: float | None = Field(None, description="Unix seconds.")
    last_checkpoint_time: float | None = Field(None, description="Unix seconds.")
    last_checkpoint_step: int | None = None
    message: str = Field("", description="One line for a person: what happens now.")


def now() -> str:
    """RFC 3339 in UTC with microseconds, so that the first of several failures can be found."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def write_atomic(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


@dataclass(frozen=True)
class RunDir:
    """Paths and typed access; every read answers None while the file is not there."""

    path: Path

    @property
    def stop_file(self) -> Path:
        return self.path / "stop"

    @property
    def stop_requested(self) -> bool:
        return self.stop_file.exists()

    def request_stop(self, reason: str) -> None:
        write_atomic(self.stop_file, reason)

    def clear(self) -> None:
        """Forget an earlier attempt on this node."""
        for old in [self.stop_file, self.path / "report.json", self.path / "result.json"]:
            old.unlink(missing_ok=True)
        for folder in ("heartbeat", "errors"):
            for old in (self.path / folder).glob("*"):
                old.unlink(missing_ok=True)

    def beat(self, rank: int, phase: str, step: int) -> None:
        beat = Heartbeat(phase=phase, step=step, time=time.time())
        write_atomic(self.path / "heartbeat" / str(rank), beat.model_dump_json(by_alias=True))

    def heartbeats(self) -> dict[int, Heartbeat]:
        folder = self.path / "heartbeat"
        files = [f for f in folder.glob("*") if f.name.isdigit()] if folder.exists() else []
        return {int(f.name): Heartbeat.model_validate_json(f.read_bytes()) for f in files}

    def write_report(self, report: TrainerReport) -> None:
        write_atomic(self.path / "report.json", report.model_dump_json(by_alias=True, exclude_none=True))

    def report(self) -> TrainerReport | None:
        return _read(self.path / "report.json", TrainerReport)

    def write_error(self, rank: int, words: TerminationMessage) -> None:
        write_atomic(self.path / "errors" / f"{rank}.json", words.encode())

    def errors(self) -> dict[int, TerminationMessage]:
        files = sorted((self.path / "errors").glob("[0-9]*.json"))
        return {int(f.stem): TerminationMessage.model_validate_json(f.read_bytes()) for f in files}

    def write_result(self, words: TerminationMessage) -> None:
        write_atomic(self.path / "result.json", words.model_dump_json(by_alias=True, exclude_none=True))

    def result(self) -> TerminationMessage | None:
        return _read(self.path / "result.json", TerminationMessage)


def _read(path: Path, model: type[M]) -> M | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
