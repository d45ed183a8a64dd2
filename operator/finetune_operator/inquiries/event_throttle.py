"""Who may ask for events next.

For each such question the API server reads all events of a namespace, so a burst of jobs that wait for the same thing
puts its questions one after the other. Each namespace has a row of its own: many jobs of one keep no other waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

BETWEEN = 0.5
"""Seconds between two turns."""


@dataclass
class EventThrottle:
    """One for each uid that waits, in the order in which they came."""

    clock: Callable[[], float]
    _of: dict[str, float] = field(default_factory=dict)
    _next: dict[str, float] = field(default_factory=dict)

    def wait(self, uid: str, *, lane: str = "") -> float:
        """Seconds until its turn, which is kept for it; 0: it is."""
        now = self.clock()
        if uid not in self._of:
            self._of[uid] = max(now, self._next.get(lane, 0.0))
            self._next = {name: at for name, at in self._next.items() if at > now} | {lane: self._of[uid] + BETWEEN}
        return max(0.0, self._of[uid] - now)

    def take(self, uid: str, *, again_in: float) -> None:
        """It was its turn, and is again after so many seconds. Turns that were not taken for as long are forgotten."""
        now = self.clock()
        self._of = {other: turn for other, turn in self._of.items() if turn > now - again_in} | {uid: now + again_in}
