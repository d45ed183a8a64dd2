"""The operator's own errors while it looks at a job: reported in its status, and kept from other jobs.

An unexpected exception is retried, as one that passes would be. When it stays, the job says so in the
condition UnexpectedError, and is decided on without what its pods said, where such a thing usually comes from: what its
user asks for (suspend, delete), deadlines, failures by exit code and the end continue, as do all other jobs.

The log gets one traceback for each place in the code, and one line for each try.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from finetune_api.failures import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_api.text import one_line

from .decide import decide
from .decision import Decision
from .kube.resources import Key
from .state.observe import Observed
from .state.status import Stamp, condition, is_true, terminal
from .state.views import JobView, Pod

logger = logging.getLogger(__name__)

TRIES = 3
"""Failures in a row after which the status says so."""

PLACES = 100
"""Tracebacks in the life of a process."""


@dataclass
class UnexpectedErrors:
    _failures: dict[Key, int] = field(default_factory=dict)
    _places: set[str] = field(default_factory=set)

    def decided(self, key: Key, seen: Observed, now: datetime) -> tuple[Decision, Exception | None]:
        """The decision. Where an error stays, one without what pods said, and the error."""
        try:
            return decide(seen, now), None
        except Exception as error:
            if self._failures.get(key, 0) < TRIES - 1:
                raise
            return decide(mute(seen), now), error

    def met(self, key: Key, error: Exception, *, pause: float) -> bool:
        """Logs it. True if the status should say so."""
        self._failures[key] = self._failures.get(key, 0) + 1
        what = described(error)
        known = what in self._places or len(self._places) >= PLACES
        self._places.add(what)
        logger.error("%s/%s: %s; retrying in %.1f s", *key, what, pause, exc_info=None if known else error)
        return self._failures[key] >= TRIES

    def passed(self, key: Key) -> None:
        self._failures.pop(key, None)


def described(error: Exception) -> str:
    """In a line, with the place in the code."""
    *_, last = traceback.extract_tb(error.__traceback__) or [traceback.FrameSummary("?", 0, "?")]
    return f"{one_line(f'{type(error).__name__}: {error}')} ({Path(last.filename).name}:{last.lineno})"


def mute(seen: Observed) -> Observed:
    """The same, with pods that say nothing: their phases and exit codes are Kubernetes' word."""
    return replace(
        seen,
        report=None,
        unreadable="",
        pods_refused="",
        queue_message="",
        pod_event=None,
        pods=tuple(map(_mute, seen.pods)),
        ended_pods=tuple(map(_mute, seen.ended_pods)),
        probe_pods=tuple(map(_mute, seen.probe_pods)),
    )


def _mute(pod: Pod) -> Pod:
    ended = replace(pod.ended, words=None, text="") if pod.ended else None
    return replace(pod, message="", ended=ended, waiting=None, unschedulable="")


def told(job: JobView, error: Exception, now: datetime) -> FineTuneJobStatus:
    """The job's status, saying so."""
    message = (
        f"The operator cannot reconcile the job: {described(error)}. It retries every minute; what "
        "the job's pods report is ignored meanwhile. Please report this with the operator's log"
    )
    return _set(job, true=True, message=message, now=now)


def healed(job: JobView, now: datetime) -> FineTuneJobStatus | None:
    """The job's status without it; None if it says nothing of the kind."""
    if not is_true(job.status, "UnexpectedError"):
        return None
    return _set(job, true=False, message="The operator reconciles the job again", now=now)


def _set(job: JobView, *, true: bool, message: str, now: datetime) -> FineTuneJobStatus:
    if true and terminal(job.status):
        return job.status
    stamp = Stamp(job.generation, now)
    return condition(
        job.status, "UnexpectedError", true=true, reason=Reason.UnexpectedError, message=message, stamp=stamp
    )
