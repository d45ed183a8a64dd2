"""Work that is done once for what it depends on: folders by key, whole or absent, and no more than are useful."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_trainer.store.locks import locked

MOST_BYTES = 20 << 30
MOST_DAYS = 30.0
_DAY = 86400.0


@contextmanager
def kept(folder: Path, fill: Callable[[Path], None], *, most_bytes: float | None = MOST_BYTES) -> Iterator[Path]:
    """The folder, filled by the first process of the node that asks; the others wait for it. What was not used
    in a while goes when something new comes: arrays that are mapped stay readable until they are let go. most_bytes:
    of all folders together; None: what is opened again later goes by its age alone."""
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            _write(folder, fill)
            prune(folder.parent, keep=folder, most_bytes=math.inf if most_bytes is None else most_bytes)
        os.utime(folder)
        yield folder


def prune(root: Path, *, keep: Path, most_bytes: float = MOST_BYTES, most_days: float = MOST_DAYS) -> None:
    """Remove what was not used for `most_days`, then the least recently used until the rest fits. Folders that another
    process holds stay."""
    now = time.time()
    used = {path: path.stat().st_mtime for path in root.iterdir() if path.is_dir() and path != keep}
    sizes = {path: _size(path) for path in used}
    total = sum(sizes.values()) + _size(keep)
    for path in sorted(used, key=lambda path: used[path]):
        unfinished = path.name.startswith(".")
        too_old = now - used[path] > (1 if unfinished else most_days) * _DAY
        if too_old or (total > most_bytes and not unfinished):
            total -= sizes[path]
            _remove(path)


def _remove(folder: Path) -> None:
    lock = folder.with_suffix(".lock")
    with suppress(BlockingIOError), locked(lock, wait=False):
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write(folder: Path, fill: Callable[[Path], None]) -> None:
    """The folder appears whole or not at all, also where a lock means nothing, as on some network file systems."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(beside)
        os.rename(beside, folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
