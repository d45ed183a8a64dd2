"""How the time of a computation grows with its input: a ratio of two times of one machine, and no number of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

TRIES = 5


def times_as_long(work: Callable[[int], object], small: int, large: int) -> float:
    """How many times as long `work(large)` takes as `work(small)`, in CPU time of this thread: the least of some tries,
    since another process or the garbage collector may come between."""
    work(small)  # what is compiled or cached at first
    return min(_seconds(work, large) / max(_seconds(work, small), 1e-4) for _ in range(TRIES))


def _seconds(work: Callable[[int], object], size: int) -> float:
    begun = time.thread_time()
    work(size)
    return time.thread_time() - begun
