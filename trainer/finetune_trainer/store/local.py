"""file:// and pvc:// folders. A file is written under a temporary name, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from finetune_api.failures import FinetuneError, Reason
from finetune_api.names import ENV_PVC_ROOT, PVC_ROOT
from finetune_api.uris import Uri

from .folder import PARTIAL, Changed, Digest, Entry, NotFound, digest_of, safe_path

_CHUNK = 1 << 20


def open_local(uri: Uri, *, environ: Mapping[str, str]) -> LocalFolder:
    """pvc://claim/path is `<FINETUNE_PVC_ROOT>/claim/path`, where the operator mounts the claim."""
    if uri.scheme == "file":
        return LocalFolder(uri.text, Path("/" + uri.path))
    claim = Path(environ.get(ENV_PVC_ROOT) or PVC_ROOT) / uri.authority
    if not claim.is_dir():
        raise NotFound(
            f"the claim {uri.authority} of {uri.text} is not mounted at {claim}",
            f"In a cluster: is there a PersistentVolumeClaim {uri.authority} in the job's namespace? "
            f"On a laptop: set {ENV_PVC_ROOT} to a folder that has a subfolder {uri.authority}.",
        )
    folder = LocalFolder(uri.text, claim / uri.path, root=claim)
    folder.inside(folder.path)
    return folder


@dataclass(frozen=True)
class LocalFolder:
    """The Folder at a path of this machine; it is created by the first `put`."""

    uri: str
    path: Path
    root: Path | None = None
    """No link leads out of it: a claim's other writers do not choose which files of the pod are read or written."""

    def inside(self, path: Path) -> Path:
        """The same path. InvalidSpec if a symbolic link on it leads out of the root."""
        if self.root is not None and not path.resolve().is_relative_to(self.root.resolve()):
            message = f"{self._name(path.relative_to(self.path).as_posix())} is a link to {path.resolve()}"
            hint = "A link may only lead to files of the same claim: copy the file there."
            raise FinetuneError(Reason.InvalidSpec, f"{message}, which is outside of its claim", hint)
        return path

    def read(self, path: str) -> bytes:
        with os_errors("read", self._name(path)):
            return self._at(path).read_bytes()

    def read_range(self, entry: Entry, start: int, stop: int) -> bytes:
        where = self._name(entry.path)
        with os_errors("read", where), self._at(entry.path).open("rb") as file:
            now = os.fstat(file.fileno())
            if (now.st_size, str(now.st_mtime_ns)) != (entry.size, entry.version):
                raise Changed(where)
            file.seek(start)
            return file.read(stop - start)

    def stat(self, path: str) -> Entry | None:
        target = self._at(path)
        with os_errors("read", self._name(path)):
            try:
                stat = target.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            return Entry(path, stat.st_size, str(stat.st_mtime_ns)) if target.is_file() else None

    def exists(self, path: str) -> bool:
        return self.stat(path) is not None

    def list(self, prefix: str = "") -> list[Entry]:
        with os_errors("list", self._name(prefix)):
            top = self._at(prefix) if prefix else self.path
            found = [Path(base) / name for base, _, names in os.walk(top, onerror=_unless_missing) for name in names]
            files = [(f, f.stat()) for f in sorted(found) if not f.name.endswith(PARTIAL) and f.is_file()]
        return [Entry(f.relative_to(self.path).as_posix(), s.st_size, str(s.st_mtime_ns)) for f, s in files]

    def put(self, path: str, data: bytes | Path) -> None:
        with os_errors("write", self._name(path)):
            target = self._at(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, _CHUNK)

    def delete(self, path: str) -> None:
        with os_errors("delete", self._name(path)):
            self._at(path).unlink(missing_ok=True)

    def download(self, path: str, target: Path) -> Digest:
        with os_errors("read", self._name(path)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._at(path).open("rb") as source, replacing(target) as file:
                shutil.copyfileobj(source, file, _CHUNK)
        return digest_of(target)

    def digest(self, path: str) -> Digest:
        with os_errors("read", self._name(path)):
            return digest_of(self._at(path))

    def check_writable(self) -> None:
        name = f".writable-{secrets.token_hex(4)}{PARTIAL}"
        self.put(name, b"")
        self.delete(name)

    def _at(self, path: str) -> Path:
        return self.inside(self.path / safe_path(path))

    def _name(self, path: str) -> str:
        return f"{self.uri.rstrip('/')}/{path}".rstrip("/").removesuffix("/.")


@contextmanager
def os_errors(doing: str, where: str) -> Iterator[None]:
    """Turns an OSError of `doing` (read, write, …) at `where` into a FinetuneError."""
    try:
        yield
    except OSError as error:
        raise _explain(error, doing=doing, where=where) from error


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `target` once it is complete and on the disk; on an error nothing is left."""
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable; file systems that cannot sync a folder need not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _explain(error: OSError, *, doing: str, where: str) -> FinetuneError:
    if isinstance(error, FileNotFoundError) or (doing == "read" and isinstance(error, NotADirectoryError)):
        return NotFound(f"there is no file {where}")
    detail = f"cannot {doing} {where}: {error.strerror or error}"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return FinetuneError(
            Reason.CredentialsRejected,
            detail,
            "Check owner and mode of the folder (in a pod: pod.fsGroup, pod.runAsUser) and that the mount is writable.",
        )
    if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        return FinetuneError(
            Reason.InvalidSpec, detail, "A file stands where a folder is wanted, or the other way round."
        )
    hint = (
        "The disk or quota is full: free some space."
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else "Check the volume."
    )
    return FinetuneError(Reason.StorageUnavailable, detail, hint)
