"""What every store can do and how it fails. `opening` opens one from a URI.

Paths are relative to the folder, with `/` between segments; a path that would leave the folder is refused. A `put` is
all or nothing: readers see the old file or the new one. Every failure is a FinetuneError:

    NotFound                no such file (a FinetuneError that callers may catch; BucketMissing is one too)
    CredentialsMissing      no keys where the store needs some
    CredentialsRejected     wrong keys, or keys without the right
    StorageUnavailable      the store cannot be reached, is overloaded or full: trying again may help
    InvalidSpec             the URI or the store's settings are wrong: trying again cannot help
    Changed                 a file that is read in parts is not what it was (DataUnreadable)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from finetune_api.failures import FinetuneError, Reason

PARTIAL = ".partial"
"""Ending of a file that is still being written; such files are never listed."""


@dataclass(frozen=True)
class Entry:
    """A file in a folder. `version` changes when the content does: an etag, or a modification time."""

    path: str
    size: int
    version: str = ""


class Digest(NamedTuple):
    """What a file contains: hex sha256 and length in bytes."""

    sha256: str
    size: int


class NotFound(FinetuneError):
    """The file or folder is not there; callers who know better give it another reason."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(Reason.DataNotFound, message, hint)


class BucketMissing(NotFound):
    """Not even the bucket is there."""


class Changed(FinetuneError):
    """The file has been replaced, so that parts of the old one and of the new one would be read as one."""

    def __init__(self, where: str) -> None:
        super().__init__(
            Reason.DataUnreadable,
            f"{where} changed while it was read",
            "Run again when nothing writes there any more; write new data under a new name.",
        )


class Folder(Protocol):
    """See the module's docstring for paths and errors."""

    @property
    def uri(self) -> str: ...

    def read(self, path: str) -> bytes: ...

    def read_range(self, entry: Entry, start: int, stop: int) -> bytes:
        """Bytes `start` up to `stop` of the file that was listed as `entry`; Changed when it is another one now."""

    def stat(self, path: str) -> Entry | None:
        """None when there is no such file."""

    def exists(self, path: str) -> bool: ...

    def list(self, prefix: str = "") -> list[Entry]:
        """All files below the subfolder `prefix`, sorted; paths stay relative to this folder. [] when there is none."""

    def put(self, path: str, data: bytes | Path) -> None:
        """Bytes, or the content of a local file."""

    def delete(self, path: str) -> None:
        """Deleting what is not there is fine."""

    def download(self, path: str, target: Path) -> Digest:
        """Into the local file `target`, which appears only when it is complete. Returns what was received."""

    def digest(self, path: str) -> Digest:
        """Reads the whole file without keeping it."""

    def check_writable(self) -> None:
        """Writes and removes a small file; raises what a commit would raise."""


def safe_path(path: str) -> str:
    """The path itself, if it stays inside its folder; else InvalidSpec. Guards against manifests that say `../../x`."""
    segments = path.split("/")
    if any(s in ("", ".", "..") or "\\" in s or not s.isprintable() for s in segments):
        raise FinetuneError(Reason.InvalidSpec, f"{path!r} is not the name of a file inside a folder")
    return path


def digest_of(data: bytes | Path) -> Digest:
    """The digest of bytes, or of a local file's content."""
    if isinstance(data, bytes):
        return Digest(hashlib.sha256(data).hexdigest(), len(data))
    with data.open("rb") as file:
        return digest_chunks(iter(lambda: file.read(1 << 20), b""))


def digest_chunks(chunks: Iterable[bytes]) -> Digest:
    """The digest of a file that arrives in pieces."""
    sha, size = hashlib.sha256(), 0
    for chunk in chunks:
        sha.update(chunk)
        size += len(chunk)
    return Digest(sha.hexdigest(), size)
