"""Which job to look at next: a queue that holds each key at most once.

A key that is added while a worker has it comes back after the worker is done, so no two workers ever look at one job
and no event is lost. `add_after` is how policies ask for a look at a later time; each look resets that time.

Urgent keys go first, those that wait for a gang, since the rest is bookkeeping; but every fourth look is at
another job, so that none waits for ever.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

FIRST_RETRY = 0.25
LONGEST_RETRY = 60.0
IN_A_ROW = 3
"""Urgent keys taken before one that is not."""


class WorkQueue(Generic[K]):
    """For one event loop. Ages are seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready: dict[K, float] = {}  # key → since when; a dict keeps the order of arrival
        self._urgent: dict[K, float] = {}
        self._in_a_row = 0
        self._taken: dict[K, bool | None] = {}  # key → added again meanwhile, and whether urgently
        self._later: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._arrived = asyncio.Event()

    def add(self, key: K, *, urgent: bool = False) -> None:
        if key in self._taken:
            self._taken[key] = urgent or bool(self._taken[key])
        elif urgent and key not in self._urgent:
            self._urgent[key] = self._ready.pop(key, self._clock())
            self._arrived.set()
        elif key not in self._ready and key not in self._urgent:
            self._ready[key] = self._clock()
            self._arrived.set()

    def add_after(self, key: K, seconds: float) -> None:
        """The earliest of several times counts."""
        loop = asyncio.get_running_loop()
        known = self._later.get(key)
        if known is not None:
            if known.when() <= loop.time() + seconds:
                return
            known.cancel()
        self._later[key] = loop.call_later(max(0.0, seconds), self._due, key)

    def _due(self, key: K) -> None:
        self._later.pop(key, None)
        self.add(key)

    async def get(self) -> K:
        """Wait for a key and take it; `done` returns it."""
        while not self._ready and not self._urgent:
            self._arrived.clear()
            await self._arrived.wait()
        hurried = bool(self._urgent) and (self._in_a_row < IN_A_ROW or not self._ready)
        self._in_a_row = self._in_a_row + 1 if hurried else 0
        lane = self._urgent if hurried else self._ready
        key = next(iter(lane))
        del lane[key]
        self._taken[key] = None
        if timer := self._later.pop(key, None):
            timer.cancel()
        return key

    def done(self, key: K, *, rest: float = 0.0) -> None:
        """What was added meanwhile is taken again, after so many seconds at the earliest."""
        if rest > 0:
            asyncio.get_running_loop().call_later(rest, self.done, key)
        elif (urgent := self._taken.pop(key, None)) is not None:
            self.add(key, urgent=urgent)

    def retry(self, key: K, at_least: float = 0.0) -> float:
        """Look again after a pause that doubles with each failure in a row. Returns the pause in seconds."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(count - 1, 16))
        pause = max(pause * random.uniform(0.75, 1.25), at_least)
        self.add_after(key, pause)
        return pause

    def forget(self, key: K) -> None:
        """The last look went well."""
        self._failures.pop(key, None)

    def clear(self) -> None:
        """Nothing waits any more, now or later. Workers keep what they hold, and it does not come back by itself."""
        for timer in self._later.values():
            timer.cancel()
        for each in (self._ready, self._urgent, self._later, self._failures):
            each.clear()
        self._taken = dict.fromkeys(self._taken)

    @property
    def depth(self) -> int:
        return len(self._ready) + len(self._urgent)

    def oldest_seconds(self) -> float:
        """How long the first key has been waiting for a worker."""
        firsts = [since for lane in (self._ready, self._urgent) for since in list(lane.values())[:1]]
        return self._clock() - min(firsts) if firsts else 0.0
