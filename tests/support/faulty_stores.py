"""Folders for tests: one in memory, and one that fails or dies at the k-th change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.failures import FinetuneError, Reason
from finetune_api.plan import JobIdentity
from finetune_trainer.store.folder import Changed, Digest, Entry, NotFound, digest_of, safe_path

RUN = JobIdentity(namespace="team", name="cardiology", uid="uid-1")
OTHER_RUN = JobIdentity(namespace="team", name="surgery", uid="uid-2")


@dataclass
class MemoryFolder:
    """The Folder protocol over a dict; `changes` logs every put and delete."""

    files: dict[str, bytes] = field(default_factory=dict)
    uri: str = "memory://test"
    changes: list[tuple[str, str]] = field(default_factory=list)

    def read(self, path: str) -> bytes:
        if safe_path(path) not in self.files:
            raise NotFound(f"there is no file {path}")
        return self.files[path]

    def read_range(self, entry: Entry, start: int, stop: int) -> bytes:
        if self.stat(entry.path) != entry:
            raise Changed(f"{self.uri}/{entry.path}")
        return self.read(entry.path)[start:stop]

    def stat(self, path: str) -> Entry | None:
        return Entry(path, len(self.files[path])) if safe_path(path) in self.files else None

    def exists(self, path: str) -> bool:
        return path in self.files

    def list(self, prefix: str = "") -> list[Entry]:
        below = prefix + "/" if prefix else ""
        return [Entry(p, len(d)) for p, d in sorted(self.files.copy().items()) if p.startswith(below)]

    def put(self, path: str, data: bytes | Path) -> None:
        self.files[safe_path(path)] = data if isinstance(data, bytes) else data.read_bytes()
        self.changes.append(("put", path))

    def delete(self, path: str) -> None:
        self.files.pop(safe_path(path), None)
        self.changes.append(("delete", path))

    def download(self, path: str, target: Path) -> Digest:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.read(path))
        return digest_of(target)

    def digest(self, path: str) -> Digest:
        return digest_of(self.read(path))

    def check_writable(self) -> None: ...


@dataclass
class DyingFolder:
    """Dies at change number `at` (from 0): before it takes effect, or after (the answer is lost). Dead, it only fails.

    `watch` sees the folder after every change that took effect.
    """

    folder: MemoryFolder
    at: int
    after: bool
    watch: Callable[[MemoryFolder], None] = lambda _: None
    done: int = 0
    dead: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    uri = "memory://test"

    def read(self, path: str) -> bytes:
        return self._alive().read(path)

    def read_range(self, entry: Entry, start: int, stop: int) -> bytes:
        return self._alive().read_range(entry, start, stop)

    def stat(self, path: str) -> Entry | None:
        return self._alive().stat(path)

    def exists(self, path: str) -> bool:
        return self._alive().exists(path)

    def list(self, prefix: str = "") -> list[Entry]:
        return self._alive().list(prefix)

    def download(self, path: str, target: Path) -> Digest:
        return self._alive().download(path, target)

    def digest(self, path: str) -> Digest:
        return self._alive().digest(path)

    def put(self, path: str, data: bytes | Path) -> None:
        self._change(lambda: self.folder.put(path, data))

    def delete(self, path: str) -> None:
        self._change(lambda: self.folder.delete(path))

    def check_writable(self) -> None:
        self._alive()

    def _change(self, change: Callable[[], None]) -> None:
        with self.lock:
            self._alive()
            self.dead = self.done == self.at
            if not self.dead or self.after:
                change()
                self.watch(self.folder)
            self.done += 1
            self._alive()

    def _alive(self) -> MemoryFolder:
        if self.dead:
            raise FinetuneError(Reason.StorageUnavailable, "the store is away")
        return self.folder


def deaths(act: Callable[[DyingFolder], None], start: Callable[[], MemoryFolder]) -> list[tuple[int, bool]]:
    """Every (change, before or after) at which `act` can die, counted on a run that lives."""
    alive = DyingFolder(start(), at=-1, after=False)
    act(alive)
    return [(k, after) for k in range(alive.done) for after in (False, True)]
