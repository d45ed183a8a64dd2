"""The process tree below an agent. As PID 1 it also inherits every orphan; elsewhere it asks the kernel for the same,
so that ranks cannot outlive a torchrun that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """Ask for SIGTERM when the parent process ends, however it ends. Without effect outside Linux."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process. Without effect outside Linux; PID 1 is one already."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def reap(own: Sequence[subprocess.Popen[bytes]]) -> None:
    """Collect dead orphans. Our own children are left to their Popen, which must see their exit status."""
    ours = {child.pid: child for child in own}
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None:
            return
        if dead.si_pid in ours:
            ours[dead.si_pid].poll()
        else:
            os.waitpid(dead.si_pid, 0)


def descendants() -> list[psutil.Process]:
    """Every process below this one, parents first."""
    return list(psutil.Process().children(recursive=True))


def end_all(*, patience: float = 5.0) -> None:
    """SIGKILL to everything below this process, until nothing is left or the patience ends."""
    end = time.monotonic() + patience
    while (left := [p for p in descendants() if _lives(p)]) and time.monotonic() < end:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
