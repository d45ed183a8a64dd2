"""A lock that pods of several nodes can share: a file on their volume, made exclusively, touched while it is held.

Network file systems differ in which locks they have, so nothing more is asked of them than that one of two processes
creates a file, and that times of files are kept. A holder is dead when its file has not changed for as long as the
waiter has watched it; no two clocks are compared. On the holder's own machine, where flock shows that no process has
the file open any more, that takes seconds.

A holder that was stopped for longer than `Pace.dead` may wake up next to its successor. So what is done under a lock
must be right without it, and only cheaper with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

_CONTENT = 256
"""Bytes of a lock file that are read; more is not a lock."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds."""

    beat: float = 5.0
    """Between two signs of life of a holder."""
    dead: float = 90.0
    """Without one, after which a lock is taken over: NFS clients see times of files that are up to a minute old."""
    dead_here: float = 15.0
    """The same for a holder of this machine that no longer has the file open."""
    poll: float = 0.5
    """Between two looks at a lock that another process holds."""


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds."""

    descriptor: int

    def now(self) -> float:
        """The present time by the clock that the volume's times of files are of."""
        os.utime(self.descriptor)
        return os.fstat(self.descriptor).st_mtime


@contextmanager
def held(file: Path, *, pace: Pace, waiting: Callable[[], None] = lambda: None) -> Iterator[Lock]:
    """Holds the lock while the block runs. `waiting` is called before each pause, and ends the wait by raising. OSError
    if the volume cannot be written."""
    token = secrets.token_hex(8)
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(file, token, pace, waiting)
    stop = Event()
    beating = Thread(target=_beat, args=(descriptor, pace.beat, stop), name="lock", daemon=True)
    beating.start()
    try:
        yield Lock(descriptor)
    finally:
        stop.set()
        beating.join()
        with suppress(OSError):
            if _content(file) == _written(token):
                file.unlink()
        os.close(descriptor)


def _take(file: Path, token: str, pace: Pace, waiting: Callable[[], None]) -> int:
    watch = _Watch(pace)
    while True:
        with suppress(FileExistsError):
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o664)
            with suppress(OSError):  # a file system may have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                os.write(descriptor, _written(token))
            except OSError:  # no space: others need not wait for a lock that nobody holds
                os.close(descriptor)
                file.unlink()
                raise
            return descriptor
        if (dead := watch.dead(file)) is not None:
            _remove(file, dead)
            continue
        waiting()
        time.sleep(pace.poll)


@dataclass
class _Watch:
    """What a waiter has seen of a lock's file."""

    pace: Pace
    seen: tuple[int, bytes] | None = None
    since: float = field(default_factory=time.monotonic)

    def dead(self, file: Path) -> bytes | None:
        """The content of the file if its holder is dead; else None."""
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            content = os.read(descriptor, _CONTENT)
            now = (os.fstat(descriptor).st_mtime_ns, content)
            if now != self.seen:
                self.seen, self.since = now, time.monotonic()
                return None
            quiet = time.monotonic() - self.since
            if quiet > self.pace.dead or (quiet > self.pace.dead_here and _left(descriptor, content)):
                return content
            return None
        finally:
            os.close(descriptor)


def _left(descriptor: int, content: bytes) -> bool:
    """Whether the holder was a process of this machine, and has ended."""
    try:
        boot = json.loads(content)["boot"]
        if not boot or boot != _boot():
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _remove(file: Path, dead: bytes) -> None:
    """Only one waiter can rename the file. If a successor's was there already, it goes back."""
    grave = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        file.rename(grave)
        if _content(grave) != dead:
            with suppress(OSError):
                os.link(grave, file)
        grave.unlink()


def _beat(descriptor: int, every: float, stop: Event) -> None:
    while not stop.wait(every):
        with suppress(OSError):
            os.utime(descriptor)


def _content(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_CONTENT)


def _written(token: str) -> bytes:
    return json.dumps({"token": token, "boot": _boot()}).encode()


def _boot() -> str:
    """What distinguishes this machine since it started; the same in all its containers. Empty where it is unknown."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
