"""Stop requests by signal."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field


@dataclass
class Stop:
    """SIGTERM or SIGINT request a checkpoint and an exit; a second SIGINT, or SIGQUIT, an immediate exit."""

    reason: str | None = None
    since: float | None = None
    """Monotonic seconds of the first request."""
    at_once: bool = False
    _told: bool = field(default=False, repr=False)

    def install(self) -> None:
        """Installs the handlers. Python requires that this is done in the main thread."""
        signal.signal(signal.SIGTERM, self.receive)
        signal.signal(signal.SIGINT, self.receive)
        signal.signal(signal.SIGQUIT, self.receive)

    def receive(self, number: int, _frame: object = None) -> None:
        self.at_once = self.at_once or number == signal.SIGQUIT or (number == signal.SIGINT and self.requested)
        if self.reason is None:
            self.reason, self.since = signal.Signals(number).name, time.monotonic()

    @property
    def requested(self) -> bool:
        return self.reason is not None

    @property
    def seconds(self) -> float:
        """Since the first request; 0 without one."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    def first_time_seen(self) -> bool:
        """True exactly once, when a request has come."""
        seen = self.requested and not self._told
        self._told = self._told or seen
        return seen
