"""The API server's clock, by the Date header of its answers.

Deadlines compare now with times that the API server wrote. The clock of this machine may be half an hour off, or be set
while the operator runs; then gangs would fail to start at once. So now is the API server's, and between two answers it
runs on by a monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime


def awake() -> float:
    """Seconds, also while the machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ServerClock:
    """Any thread may use it. Until the first answer it is this machine's clock."""

    def __init__(
        self, *, steady: Callable[[], float] = awake, local: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._steady = steady
        self._start = local() - timedelta(seconds=steady())

    def steady(self) -> float:
        """Seconds of a monotonic clock."""
        return self._steady()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._steady())

    def told(self, date: str | None, *, sent: float) -> None:
        """The Date of an answer that came just now, to a request of that `steady` time. It is in whole seconds, and was
        written between the two: what is known already stays where that can be."""
        if not date:
            return
        try:
            second = parsedate_to_datetime(date)
        except ValueError:
            return
        if second.tzinfo is None:
            return
        least = second - timedelta(seconds=self._steady())
        most = second + timedelta(seconds=1 - sent)
        self._start = min(max(self._start, least), most)
