"""Waiting for a store that is away: a commit after hours of training must survive a restart of the store."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from finetune_api.failures import FinetuneError, Reason

from .folder import Digest, Entry, Folder

_log = logging.getLogger(__name__)
T = TypeVar("T")


def waits(rng: random.Random, *, first: float = 0.5, most: float = 5.0) -> Iterator[float]:
    """Seconds between tries: doubling up to `most`, each between half and the whole of it, so that ranks spread out."""
    wait = first
    while True:
        yield wait * rng.uniform(0.5, 1.0)
        wait = min(wait * 2, most)


@dataclass(frozen=True)
class RetryingFolder:
    """A Folder that tries StorageUnavailable again for up to `seconds` in each operation. Other errors pass at once."""

    folder: Folder
    seconds: float
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    @property
    def uri(self) -> str:
        return self.folder.uri

    def read(self, path: str) -> bytes:
        return self._patiently(lambda: self.folder.read(path))

    def read_range(self, entry: Entry, start: int, stop: int) -> bytes:
        return self._patiently(lambda: self.folder.read_range(entry, start, stop))

    def stat(self, path: str) -> Entry | None:
        return self._patiently(lambda: self.folder.stat(path))

    def exists(self, path: str) -> bool:
        return self._patiently(lambda: self.folder.exists(path))

    def list(self, prefix: str = "") -> list[Entry]:
        return self._patiently(lambda: self.folder.list(prefix))

    def put(self, path: str, data: bytes | Path) -> None:
        self._patiently(lambda: self.folder.put(path, data))

    def delete(self, path: str) -> None:
        self._patiently(lambda: self.folder.delete(path))

    def download(self, path: str, target: Path) -> Digest:
        return self._patiently(lambda: self.folder.download(path, target))

    def digest(self, path: str) -> Digest:
        return self._patiently(lambda: self.folder.digest(path))

    def check_writable(self) -> None:
        self._patiently(self.folder.check_writable)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        return retrying(attempt, seconds=self.seconds, sleep=self.sleep, clock=self.clock, rng=self.rng)


def retrying(
    attempt: Callable[[], T],
    *,
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
) -> T:
    """What `attempt` gives, which is made again for up to `seconds` while it raises StorageUnavailable."""
    deadline = clock() + seconds
    for tried, wait in enumerate(waits(rng or random.Random())):
        try:
            return attempt()
        except FinetuneError as error:
            left = deadline - clock()
            if error.reason is not Reason.StorageUnavailable or left <= 0:
                raise
            if tried == 0:
                _log.warning("%s; trying again for up to %.0f s", error.message, seconds)
            sleep(min(wait, left))
    raise AssertionError("the waits never end")
