"""Files of a store that are read where they lie: of a file a few blocks are in memory, and nothing is on the disk.

Sequential      from the start to the end, in blocks that grow, the next one on its way while one is used; knows the
                sha256 of what it read
Seekable        any part, a request for each; short reads are served from around them
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from finetune_api.failures import FinetuneError, Reason

FIRST = 1 << 18
"""Bytes of the first block: who looks at one row does not read much more."""
MOST = 8 << 20
"""Bytes of the largest later block: seconds of work for a tokenizer, a fraction of one for a store."""
SHORT = 1 << 16
"""Bytes of the smallest request: tables have many small parts near each other."""


@dataclass(frozen=True)
class Ranges:
    """A remote file of a known size."""

    uri: str
    size: int
    fetch: Callable[[int, int], bytes]
    """Bytes from a place up to another one. FinetuneError."""

    def read(self, start: int, stop: int) -> bytes:
        data = self.fetch(start, stop)
        if len(data) != stop - start:
            raise FinetuneError(
                Reason.StorageUnavailable, f"{self.uri}: {len(data)} bytes came where {stop - start} were asked for"
            )
        return data


class Sequential(io.RawIOBase):
    """For io.BufferedReader, gzip and Arrow streams. After the first block it holds two."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges, self._sha = ranges, hashlib.sha256()
        self._block, self._used = memoryview(b""), 0
        self._asked, self._size = 0, FIRST
        self._pool: ThreadPoolExecutor | None = None
        self._coming: Future[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._used == len(self._block):
            self._block, self._used = memoryview(self._next()), 0
            self._sha.update(self._block)
        part = self._block[self._used : self._used + len(buffer)]
        buffer[: len(part)] = part
        self._used += len(part)
        return len(part)

    def sha256(self) -> str:
        """The digest of the whole file: what was not used of it is read now."""
        while data := self._next():
            self._sha.update(data)
        return self._sha.hexdigest()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._block = memoryview(b"")
        super().close()

    def _next(self) -> bytes:
        """The block after the last one; empty at the end."""
        started = self._asked > 0
        data = self._coming.result() if self._coming else self._ranges.read(*self._span()) if self._left else b""
        self._coming = None
        if started and self._left:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
            self._coming = self._pool.submit(self._ranges.read, *self._span())
        return data

    @property
    def _left(self) -> bool:
        return self._asked < self._ranges.size

    def _span(self) -> tuple[int, int]:
        start, self._asked = self._asked, min(self._asked + self._size, self._ranges.size)
        self._size = min(2 * self._size, MOST)
        return start, self._asked


class Seekable(io.RawIOBase):
    """For Parquet and Arrow files."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges, self._place = ranges, 0
        self._near, self._near_start = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ranges.size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        behind = self._ranges.size if size < 0 else min(self._place + size, self._ranges.size)
        data = self._between(self._place, behind) if behind > self._place else b""
        self._place += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _between(self, start: int, stop: int) -> bytes:
        if stop - start >= SHORT:
            return self._ranges.read(start, stop)
        if not self._near_start <= start <= stop <= self._near_start + len(self._near):
            # The last bytes of a table say where the bytes before them are.
            end = min(start + SHORT, self._ranges.size)
            first = max(0, end - SHORT) if end == self._ranges.size else start
            self._near, self._near_start = self._ranges.read(first, end), first
        return self._near[start - self._near_start : stop - self._near_start]
