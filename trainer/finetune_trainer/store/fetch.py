"""A folder as a local path, downloaded once. Several processes of a node may ask at the same time.

<cache>/folders/<key>/…          the key is made of the listing; being downloaded it is <key>.partial/, and the files
                                 that are complete there are kept when a download starts again
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from finetune_api.failures import FinetuneError, Reason

from .folder import Entry, Folder, NotFound, safe_path
from .local import LocalFolder, os_errors
from .locks import locked
from .opening import open_folder

CONCURRENCY = 8
"""Transfers at once; object stores answer many slow requests faster than one."""

T = TypeVar("T")


def fetch_folder(
    uri: str,
    *,
    prefix: str,
    cache: Path,
    patterns: Sequence[str] = ("*",),
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """The path of a folder's content; of an object store, the files that match one of the patterns. NotFound."""
    folder = open_folder(uri, prefix=prefix, environ=environ)
    if isinstance(folder, LocalFolder):
        with os_errors("read", uri):
            if not folder.path.is_dir():
                raise NotFound(f"there is no folder {uri}")
            for entry in folder.list():
                folder.inside(folder.path / entry.path)
        return folder.path
    entries = [e for e in folder.list() if any(fnmatch(e.path, p) for p in patterns)]
    if not entries:
        raise NotFound(f"there is no file {' or '.join(patterns)} in {uri}")
    complete = cache / "folders" / _key(uri, *entries)
    partial = complete.with_name(complete.name + ".partial")
    with os_errors("write", str(complete)), locked(complete.with_name(f".{complete.name}.lock")):
        if not complete.exists():
            at_once(lambda entry: _download_missing(folder, entry, partial), entries)
            partial.rename(complete)
    return complete


def at_once(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Does the work for all items, several at a time. After an error nothing new is begun, and the error is raised."""
    with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="store") as pool:
        pending = [pool.submit(work, item) for item in items]
        try:
            for future in pending:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _download_missing(folder: Folder, entry: Entry, target: Path) -> None:
    file = target / safe_path(entry.path)
    if file.exists():
        return
    received = folder.download(entry.path, file)
    if received.size != entry.size:
        file.unlink()
        where = f"{folder.uri}/{entry.path}"
        raise FinetuneError(Reason.StorageUnavailable, f"{where} changed while it was downloaded", "Run again.")


def _key(uri: str, *entries: Entry) -> str:
    facts = "\n".join([uri, *(f"{e.path}\t{e.size}\t{e.version}" for e in entries)])
    return hashlib.sha256(facts.encode()).hexdigest()[:32]
