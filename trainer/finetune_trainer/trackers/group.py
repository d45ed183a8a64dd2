"""The trackers that the environment asks for, as one object that a run holds."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TypeVar

from finetune_api import names
from finetune_api.text import REDACTED, one_line
from finetune_trainer.report.record import CurvePoint, ValidationPoint

from .background import PATIENCE, Background
from .base import Ending, Kind, TrackedRun
from .mlflow import MLFLOW
from .points import Outcome, of_curves
from .tensorboard import TENSORBOARD
from .wandb import WANDB

KINDS: tuple[Kind, ...] = (TENSORBOARD, MLFLOW, WANDB)

P = TypeVar("P", CurvePoint, ValidationPoint)

_SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)
"""Names of variables whose values no line of a log may have."""
_SHORTEST = 6


@dataclass
class Trackers:
    """Without any, on all ranks but the first: each call does nothing."""

    each: Sequence[Background] = ()
    _step: int = field(default=-1, init=False)
    _evaluated: int = field(default=-1, init=False)

    def progress(self, curve: Sequence[CurvePoint], validation: Sequence[ValidationPoint]) -> None:
        """The curves so far; what is new in them is logged. Costs nothing where nothing is."""
        if not self.each:
            return
        steps, measured = _tail(curve, self._step), _tail(validation, self._evaluated)
        points = list(of_curves(steps, measured))
        if not points:
            return
        self._step = steps[-1].step if steps else self._step
        self._evaluated = measured[-1].step if measured else self._evaluated
        for tracker in self.each:
            tracker.log(points)

    def finish(self, outcome: Outcome) -> None:
        for tracker in self.each:
            tracker.finish(outcome)
        self._end()

    def leave(self, ending: Ending) -> None:
        """Of an attempt without a result; does nothing after `finish`."""
        for tracker in self.each:
            tracker.leave(ending)
        self._end()

    def _end(self) -> None:
        for tracker in self.each:
            tracker.wait()
        self.each = ()


def opened(run: TrackedRun, environ: Mapping[str, str], say: Callable[[str], None]) -> Trackers:
    """Starts the trackers that the environment asks for. A tracker that cannot be used is named in the log."""
    started = []
    private, patience = _without_secrets(environ, say), _patience(environ)
    for kind in KINDS:
        if not (variable := kind.asked_by(environ)):
            continue
        if kind.module and find_spec(kind.module) is None:
            say(f"{kind.title}: {variable} is set, but the package {kind.package} is not installed; nothing is logged")
            continue
        try:
            started.append(Background(kind.title, kind.open(run, environ), private, patience=patience))
        except Exception as error:
            private(f"{kind.title}: {one_line(error)}; nothing is logged there")
    return Trackers(started)


def _patience(environ: Mapping[str, str]) -> float:
    """Seconds, at most as many as a thread can wait; the default for what is not a number."""
    try:
        return min(max(0.0, float(environ.get(names.ENV_TRACKER_SECONDS, PATIENCE))), threading.TIMEOUT_MAX)
    except ValueError:
        return PATIENCE


def _without_secrets(environ: Mapping[str, str], say: Callable[[str], None]) -> Callable[[str], None]:
    """Libraries may repeat in an error what they were given."""
    secrets = [value for name, value in environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST]

    def private(line: str) -> None:
        for secret in secrets:
            line = line.replace(secret, REDACTED)
        say(line)

    return private


def _tail(points: Sequence[P], after: int) -> Sequence[P]:
    """The points after that of step `after`; reads no others."""
    start = len(points)
    while start and points[start - 1].step > after:
        start -= 1
    return points[start:]
