"""What a remote model consists of, before it is downloaded: its files, sizes and versions, and how to get them."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason

from .folder import Digest, Entry, NotFound, digest_of, safe_path
from .hub import Hub, explain
from .opening import open_folder

SHA256 = "sha256:"
"""Begins the version of a file whose digest the hub knows."""
OF_THE_VOLUME = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE})
"""Numbers of errors of the volume that is written to, among those that the hub's client raises."""


@dataclass(frozen=True, kw_only=True)
class RemoteModel:
    uri: str
    identity: str
    """Where the files are of: the folder, or the repository with its commit and the hub's address."""
    revision: str | None
    """The commit of a hub model; None elsewhere."""
    files: tuple[Entry, ...]
    durable: bool
    """Whether `get` syncs a file to the disk before it appears."""
    get: Callable[[str, Path], Digest]
    """Downloads a file of the model below a folder, over an older one. It appears only when it is complete. OSError of
    the folder; FinetuneError of the store."""

    @property
    def key(self) -> str:
        """A name for this content: another version of a file makes another key."""
        facts = "\n".join([self.identity, *(f"{e.path}\t{e.size}\t{e.version}" for e in self.files)])
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def lasts(self, path: str) -> bool:
        """Whether a file that is there was complete on the disk before it got its name, or its digest can show it."""
        return self.durable or any(file.version.startswith(SHA256) for file in self.files if file.path == path)

    def is_listed(self, path: str, found: Digest) -> bool:
        """Whether a file may be the one in the list, by its size, and by its digest where the hub knows it."""
        (listed,) = (entry for entry in self.files if entry.path == path)
        known = listed.version.removeprefix(SHA256) if listed.version.startswith(SHA256) else found.sha256
        return (found.size, found.sha256) == (listed.size, known)

    def download(self, path: str, target: Path) -> Digest:
        """StorageUnavailable if the file is not the one that was listed."""
        received = self.get(path, target)
        if not self.is_listed(path, received):
            (target / path).unlink()
            where = f"{self.uri.rstrip('/')}/{path}"
            raise FinetuneError(Reason.StorageUnavailable, f"{where} changed while it was downloaded", "Run again.")
        return received


def bucket_model(uri: str, *, patterns: Sequence[str], environ: Mapping[str, str]) -> RemoteModel:
    """Of an object store. NotFound, and the errors of `Folder`."""
    folder = open_folder(uri, prefix=names.PREFIX_MODEL, environ=environ)
    files = tuple(entry for entry in folder.list() if any(fnmatch(entry.path, pattern) for pattern in patterns))
    if not files:
        raise NotFound(f"there is no file {' or '.join(patterns)} in {uri}")

    def get(path: str, target: Path) -> Digest:
        try:
            return folder.download(path, target / safe_path(path))
        except FinetuneError as error:
            if isinstance(error.__cause__, OSError):  # of the target; those of the store have no cause
                raise error.__cause__ from None
            raise

    return RemoteModel(uri=uri, identity=uri, revision=None, files=files, durable=True, get=get)


def hub_model(
    repository: str,
    revision: str | None,
    *,
    uri: str,
    patterns: Sequence[str],
    ignore: Sequence[str],
    environ: Mapping[str, str],
) -> RemoteModel:
    """Of the hub, at the commit that the revision means now. ModelNotFound, CredentialsMissing, CredentialsRejected,
    StorageUnavailable; also for a gated model of which only the list of files may be read."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils._paths import filter_repo_objects

    hub = Hub.of(environ, prefix=names.PREFIX_MODEL)
    token = hub.token or False

    def explained(error: Exception) -> FinetuneError:
        missing = Reason.ModelNotFound
        return explain(error, uri, revision, known=bool(hub.token), section="model", missing=missing)

    try:
        info = HfApi(endpoint=hub.endpoint, token=token).model_info(repository, revision=revision, files_metadata=True)
        wanted = filter_repo_objects(
            info.siblings or (), allow_patterns=[*patterns], ignore_patterns=[*ignore], key=lambda each: each.rfilename
        )
        files = tuple(
            Entry(each.rfilename, each.size or 0, f"{SHA256}{each.lfs.sha256}" if each.lfs else each.blob_id or "")
            for each in sorted(wanted, key=lambda each: each.rfilename)
        )
        if files:
            largest = max(files, key=lambda each: each.size)  # weights: licences may be read by all
            url = hf_hub_url(repository, largest.path, revision=info.sha, endpoint=hub.endpoint)
            get_hf_file_metadata(url, token=token, endpoint=hub.endpoint)
    except Exception as error:
        raise explained(error) from None

    def get(path: str, target: Path) -> Digest:
        safe_path(path)
        try:
            done = hf_hub_download(
                repository, path, revision=info.sha, local_dir=target, token=token, endpoint=hub.endpoint,
                force_download=True,
            )  # fmt: skip
        except Exception as error:
            if isinstance(error, OSError) and error.errno in OF_THE_VOLUME:
                raise
            raise explained(error) from None
        return digest_of(Path(done))

    identity = f"{hub.endpoint or ''}|hf://{repository}@{info.sha}"
    return RemoteModel(uri=uri, identity=identity, revision=info.sha, files=files, durable=False, get=get)
