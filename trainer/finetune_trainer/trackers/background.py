"""A thread for a tracker, so that a server that is slow, away or broken neither delays a step nor fails the run.

Points wait here until the tracker has taken them. After a failure it is tried again a minute later, and after each
further one twice as late, up to an hour, with everything that has come since: packages lose folders, threads or memory
each time they fail. The log has one line about it, however often it fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from finetune_api.text import one_line

from .base import Ending, Tracker
from .points import Outcome, Point

RETRY_SECONDS = 60.0
MOST_RETRY_SECONDS = 3600.0
MOST_WAITING = 4000
"""Points that wait for a tracker; then the oldest are dropped. A run has about a thousand."""
PATIENCE = 30.0
"""Seconds that a finished run waits for its trackers. An attempt that failed or was interrupted waits for a sixth of
them: its pods are about to end, or to start again."""


class Background:
    """The calls return at once, except for `wait`: after `finish` or `leave`, for what is left of so many seconds."""

    def __init__(
        self,
        title: str,
        tracker: Tracker,
        say: Callable[[str], None],
        *,
        retry_seconds: float = RETRY_SECONDS,
        patience: float = PATIENCE,
    ) -> None:
        self._title, self._tracker, self._say = title, tracker, say
        self._retry_seconds, self._patience = retry_seconds, patience
        self._delay, self._until = retry_seconds, 0.0
        self._waiting: list[Point] = []
        self._last: Callable[[], None] | None = None
        self._changed = threading.Condition()
        self._started = self._reported = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {title}", daemon=True)
        self._thread.start()

    def log(self, points: Sequence[Point]) -> None:
        with self._changed:
            self._waiting = [*self._waiting, *points][-MOST_WAITING:]
            self._changed.notify()

    def finish(self, outcome: Outcome) -> None:
        self._end(partial(self._tracker.finish, outcome), self._patience)

    def leave(self, ending: Ending) -> None:
        self._end(partial(self._tracker.leave, ending), self._patience / 6)

    def _end(self, last: Callable[[], None], patience: float) -> None:
        with self._changed:
            self._last = last
            self._patience, self._until = patience, time.monotonic() + patience
            self._changed.notify()

    def wait(self) -> None:
        """Until the last call has ended. The time runs from that call, so that several trackers wait together."""
        self._thread.join(max(0.0, self._until - time.monotonic()))
        if self._thread.is_alive():
            self._report(f"no answer within {self._patience:g} s; the end of this run is not logged there")

    def _work(self) -> None:
        while not self._attempt():
            pass

    def _attempt(self) -> bool:
        """Waits for something to do, and does it. Returns whether this was the last call."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._last or not self._started)
            points, last = list(self._waiting), self._last
        try:
            self._deliver(points, last)
            self._delay = self._retry_seconds
        except Exception as error:
            follows = "the end of this run is not logged there" if last else "it is tried again, and the run continues"
            self._report(f"{one_line(f'{type(error).__name__}: {error}')}; {follows}")
            if not last:
                self._pause(self._delay)
                self._delay = min(2 * self._delay, MOST_RETRY_SECONDS)
        return last is not None

    def _deliver(self, points: list[Point], last: Callable[[], None] | None) -> None:
        if not self._started:
            where = self._tracker.start()
            self._started = True
            self._say(f"{self._title}: {one_line(where)}")
        if points:
            self._tracker.log(points)
            taken = set(map(id, points))
            with self._changed:
                self._waiting = [point for point in self._waiting if id(point) not in taken]
        if last:
            last()

    def _pause(self, seconds: float) -> None:
        """Before the next try; the end of the run cuts it short."""
        with self._changed:
            self._changed.wait_for(lambda: self._last is not None, timeout=seconds)

    def _report(self, what: str) -> None:
        """Once."""
        if not self._reported:
            self._reported = True
            self._say(f"{self._title}: {what}")
