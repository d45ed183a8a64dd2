"""What a tracker does, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from finetune_api.plan import JobIdentity

from .points import Outcome, Point


class Ending(StrEnum):
    """How an attempt ends without a result. The run of the tracker continues with the next one."""

    failed = "failed"
    interrupted = "interrupted"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker names and describes a run by. Nothing in it is a secret."""

    job: JobIdentity
    name: str
    """Of the job; with its method for a rung of a ladder."""
    attempt: int
    manifest: str
    """As YAML, without values of pod.env."""
    settings: Mapping[str, str | int | float]
    """As resolved: method, learning rate, batch size, ..."""
    output: str
    """URI of the folder that the artifact is committed to."""
    folder: Path
    """Of this attempt on this node's disk, for what a tracker writes."""


class Tracker(Protocol):
    """Called from one thread. Any exception counts as a failure of the tracker, never of the run."""

    def start(self) -> str:
        """Opens the run, or continues that of an earlier attempt. Returns where it can be seen. May be called again
        after it has failed."""

    def log(self, points: Sequence[Point]) -> None:
        """All of these or, with an exception, none: then they are logged again later."""

    def finish(self, outcome: Outcome) -> None:
        """The last call of a run with a result."""

    def leave(self, ending: Ending, /) -> None:
        """The last call of an attempt without a result."""


@dataclass(frozen=True)
class Kind:
    """A tracker that can be asked for."""

    title: str
    asked_by: Callable[[Mapping[str, str]], str]
    """The variable of the environment that asks for it; empty where none does."""
    open: Callable[[TrackedRun, Mapping[str, str]], Tracker]
    """Sends no request, and imports no package."""
    module: str = ""
    """What has to be importable; empty where nothing needs to be installed."""
    package: str = ""
    """Name to install it by."""
