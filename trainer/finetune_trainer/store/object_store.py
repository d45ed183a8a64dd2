"""s3://, gs:// and az:// folders through obstore: one Rust core with multipart uploads and its own connection pool."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from finetune_api.failures import FinetuneError, Reason
from finetune_api.uris import Uri

from .credentials import Access, access
from .errors import explain, explain_setup
from .folder import BucketMissing, Changed, Digest, Entry, NotFound, digest_chunks, safe_path
from .local import os_errors, replacing

_PART = 8 << 20
_MOST_PARTS = 5000
"""S3 allows 10,000 parts; half of it suits stores that allow fewer."""

_ETAG = re.compile(r"^[\w./+=-]+$")
"""Neither a weak one, which If-Match never takes, nor a time."""

_CLIENT = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "1d"}
"""A large file may take long, but no read may stall: so `timeout` is long and the others are short."""

_RETRY = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
"""Fails within seconds; a caller that can wait longer opens the folder with patience."""


def open_objects(uri: Uri, *, prefix: str, environ: Mapping[str, str]) -> ObjectFolder:
    """CredentialsMissing or CredentialsRejected where that is known without a request."""
    from obstore.store import AzureStore, GCSStore, S3Store

    how = access(uri, prefix=prefix, environ=environ)
    try:
        store = _store({"s3": S3Store, "gs": GCSStore, "az": AzureStore}[uri.scheme], uri, how)
    except Exception as error:
        # obstore raises its own errors, ValueError or OSError here, and their text may quote a key.
        raise explain_setup(error, where=uri.text) from None
    return ObjectFolder(uri.text, uri.authority, how.endpoint, store)


def _store(kind: Any, uri: Uri, how: Access) -> Any:
    return kind(
        uri.authority,
        prefix=uri.path.strip("/") or None,
        config={name.lower(): value for name, value in how.config.items()},
        client_options={**_CLIENT, **({"allow_http": True} if how.plain_http else {})},
        retry_config=_RETRY,
        **({"credential_provider": how.provider} if how.provider else {}),
    )


@dataclass(frozen=True)
class ObjectFolder:
    """The Folder below a key prefix of a bucket."""

    uri: str
    bucket: str
    endpoint: str
    store: Any
    """An obstore store that is bound to the prefix; paths in and out are relative to it."""

    def read(self, path: str) -> bytes:
        with self._errors("read", path):
            return bytes(self.store.get(safe_path(path)).bytes())

    def read_range(self, entry: Entry, start: int, stop: int) -> bytes:
        """With If-Match where the store has etags; what the answer says about the object is compared in any case."""
        from obstore.exceptions import PreconditionError

        etag = {"if_match": f'"{entry.version}"'} if _ETAG.match(entry.version) else {}
        with self._errors("read", entry.path):
            try:
                answer = self.store.get(safe_path(entry.path), options={"range": (start, stop), **etag})
            except PreconditionError:
                raise Changed(self._where(entry.path)) from None
            if _entry(answer.meta) != entry:
                raise Changed(self._where(entry.path))
            return bytes(answer.bytes())

    def stat(self, path: str) -> Entry | None:
        try:
            with self._errors("read", path):
                return _entry(self.store.head(safe_path(path)))
        except NotFound:
            return None

    def exists(self, path: str) -> bool:
        return self.stat(path) is not None

    def list(self, prefix: str = "") -> list[Entry]:
        with self._errors("list", prefix):
            pages = self.store.list(safe_path(prefix.rstrip("/")) if prefix else None)
            return sorted((_entry(meta) for page in pages for meta in page), key=lambda entry: entry.path)

    def put(self, path: str, data: bytes | Path) -> None:
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        try:
            with self._errors("write", path):
                self.store.put(safe_path(path), data, chunk_size=max(_PART, size // _MOST_PARTS + 1), max_concurrency=4)
        except BucketMissing as error:
            raise FinetuneError(Reason.InvalidSpec, error.message, error.hint) from error

    def delete(self, path: str) -> None:
        try:
            with self._errors("delete", path):
                self.store.delete(safe_path(path))
        except NotFound:
            return

    def download(self, path: str, target: Path) -> Digest:
        with os_errors("write", str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file, self._errors("read", path):
                return digest_chunks(_written(self._chunks(path), file))

    def digest(self, path: str) -> Digest:
        with self._errors("read", path):
            return digest_chunks(self._chunks(path))

    def check_writable(self) -> None:
        name = f".finetune/writable-{secrets.token_hex(4)}"
        self.put(name, b"finetune checks that it may write here")
        self.delete(name)

    def _chunks(self, path: str) -> Iterator[bytes]:
        return (bytes(chunk) for chunk in self.store.get(safe_path(path)).stream(min_chunk_size=1 << 20))

    @contextmanager
    def _errors(self, doing: str, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError, TimeoutError) as error:
            where = self._where(path)
            raise explain(error, doing=doing, where=where, bucket=self.bucket, endpoint=self.endpoint) from None

    def _where(self, path: str) -> str:
        return f"{self.uri.rstrip('/')}/{path}".rstrip("/")


def _written(chunks: Iterable[bytes], file: BinaryIO) -> Iterator[bytes]:
    for chunk in chunks:
        file.write(chunk)
        yield chunk


def _entry(meta: Mapping[str, Any]) -> Entry:
    # Lists and answers to a read tell the same in two ways: etags without and with quotes (Azure), times by the
    # millisecond and by the second.
    etag = (meta.get("e_tag") or "").strip('"')
    return Entry(meta["path"], meta["size"], etag or str(meta["last_modified"].replace(microsecond=0)))
