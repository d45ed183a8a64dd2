"""A cache of remote models that the pods of a namespace share: each version of a model is downloaded once.

A run looks for a model under a key made of the store's own list of files, sizes and versions. It verifies size and
sha256 of each file, downloads again what is damaged, and downloads the whole model if it is not there, under a lock for
that model. Whatever is wrong with the cache itself (full, read-only, broken, stuck) costs one line in the log, and the
model is downloaded as if there were none.

shared_lock      one filler at a time, on any file system
shared_entries   what is on the volume, verification, space
shared_leases    what is in use, and what earlier processes of a run have verified
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api import names

from . import shared_entries as entries
from .fetch import at_once
from .folder import Digest, digest_of, safe_path
from .remote_models import RemoteModel
from .shared_entries import FILES, CacheFull, Checked, Shelf, StoredFile, StoredModel
from .shared_leases import Leases, Note, Outcome, Result
from .shared_lock import Pace, held

GIB = 1 << 30
SHARE = 0.9
"""Part of the volume that models may fill if no bound is set."""
STUCK_SECONDS = 300.0
"""Without a byte more, after which a download of another pod is not waited for."""
_HUB_NOTES = ".cache"
"""Folder in which the hub's client keeps what it knows of a download."""
Tell = Callable[[str], None]


class Unusable(Exception):
    """The cache cannot be used for this model, and why."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A model in the cache."""

    path: Path
    revision: str | None


@dataclass(kw_only=True)
class SharedModels:
    """The cache at a folder."""

    root: Path
    bound: int | None = None
    """Bytes of all models; None: nine tenths of the volume."""
    notes: Path | None = None
    tell: Tell = lambda _: None
    pace: Pace = field(default_factory=Pace)
    stuck_seconds: float = STUCK_SECONDS

    def __post_init__(self) -> None:
        self.shelf = Shelf(self.root)
        self.leases = Leases(self.shelf, self.notes)

    @classmethod
    def of(cls, environ: Mapping[str, str], *, tell: Tell) -> SharedModels | None:
        """As the environment says; None if it names no cache."""
        if not (root := environ.get(names.ENV_MODEL_CACHE)):
            return None
        gib, notes = environ.get(names.ENV_MODEL_CACHE_GIB, ""), environ.get(names.ENV_MODEL_CACHE_NOTES)
        return cls(
            root=Path(root).absolute(),
            bound=int(gib) * GIB if gib.isdecimal() and int(gib) else None,
            notes=Path(notes) if notes else None,
            tell=tell,
        )

    def fetch(self, source: str, listed: Callable[[], RemoteModel]) -> Shared | None:
        """The model that `source` names; None if the cache cannot be used. Errors of the store are raised.

        Later processes of a run get what its first one got, without asking the store again.
        """
        if (known := self.leases.outcome) is not None and known.result == "bypass":
            return None
        source = hashlib.sha256(source.encode()).hexdigest()[:32]
        try:
            if not self.shelf.prepare():
                raise Unusable("its folders are links")
            return self._noted(source) or self._fetch(source, listed())
        except (CacheFull, Unusable) as error:
            why = str(error)
        except OSError as error:
            why = error.strerror or type(error).__name__
        self.tell(f"model cache: not used ({why}); this pod downloads the model for itself")
        self.leases.end(Outcome(result="bypass", why=why))
        return None

    def _noted(self, source: str) -> Shared | None:
        """What an earlier process of this run has verified, if no file has changed since."""
        if (note := self.leases.noted(source)) is None:
            return None
        self.leases.take(note.key)
        files, stored = self.shelf.entry(note.key) / FILES, entries.read_manifest(self.shelf.entry(note.key))
        if stored is None or entries.check(files, stored, trusted=note.signatures, read=False).damaged:
            return None
        return self._shared(note.key, stored)

    def _fetch(self, source: str, model: RemoteModel) -> Shared:
        if not model.files:
            raise Unusable("the model has no files")
        begun = time.monotonic()
        self.leases.take(model.key)
        result: Result = "hit"
        if (found := self._whole(source, model)) is None:
            result = self._fill(source, model)
            if (found := self._whole(source, model)) is None:
                raise Unusable("its volume does not keep what is written to it")
        outcome = Outcome(result=result, model_bytes=found.size, used_bytes=entries.used_bytes(self.shelf))
        self.leases.end(outcome)
        self.tell(_told(outcome, time.monotonic() - begun))
        return self._shared(model.key, found)

    def _shared(self, key: str, found: StoredModel) -> Shared:
        with suppress(OSError):
            os.utime(self.shelf.entry(key) / entries.MANIFEST)  # the time of the last use
        return Shared(path=self.shelf.entry(key) / FILES, revision=found.revision)

    def _whole(self, source: str, model: RemoteModel) -> StoredModel | None:
        """The manifest if all files are there and are what it and the store say."""
        stored = self._stored(model)
        return stored if stored is not None and not self._checked(source, model.key, stored).damaged else None

    def _stored(self, model: RemoteModel) -> StoredModel | None:
        """The manifest in the cache, if it has the files that the store lists."""
        stored = None if self.shelf.misplaced(model.key) else entries.read_manifest(self.shelf.entry(model.key))
        if stored is None or stored.files.keys() != {file.path for file in model.files}:
            return None
        digests = {name: Digest(file.sha256, file.size) for name, file in stored.files.items()}
        return stored if all(model.is_listed(name, digest) for name, digest in digests.items()) else None

    def _checked(self, source: str, key: str, stored: StoredModel) -> Checked:
        """Files that this run has verified before, and that have not changed since, are not read again."""
        note = self.leases.noted(source)
        trusted = note.signatures if note is not None and note.key == key else {}
        checked = entries.check(self.shelf.entry(key) / FILES, stored, trusted=trusted)
        self.leases.note(source, Note(key=key, signatures=checked.signatures))
        return checked

    def _fill(self, source: str, model: RemoteModel) -> Result:
        """Makes the model whole, or waits for another pod that does."""
        try:
            with held(self.shelf.lock(model.key), pace=self.pace, waiting=_Waiting(model.key, self)):
                return self._fill_alone(source, model)
        except _Arrived:
            return "hit"

    def _fill_alone(self, source: str, model: RemoteModel) -> Result:
        entry = self.shelf.entry(model.key)
        self.shelf.clear(model.key)
        if not entry.exists():
            self._download(source, model)
            return "miss"
        stored = self._stored(model) or _listed(model)
        if not (damaged := self._checked(source, model.key, stored).damaged):
            return "hit"
        self.tell(f"model cache: damaged files of {model.uri} are downloaded again: {', '.join(damaged[:3])}")
        self._heal(entry, model, stored, damaged)
        return "healed"

    def _download(self, source: str, model: RemoteModel) -> None:
        """What of an earlier download is complete is kept."""
        partial, entry = self.shelf.partial(model.key), self.shelf.entry(model.key)
        with held(self.shelf.lock("space"), pace=self.pace) as lock:
            bound = self.bound if self.bound is not None else int(entries.capacity(self.root) * SHARE)
            entries.make_space(
                self.shelf, model.key, model.size, bound=bound, now=lock.now(), dead_seconds=self.pace.dead
            )
            entries.make_folder(partial)
            entries.write_manifest(partial, _listed(model))
        try:
            received = _files(model, partial / FILES, [file.path for file in model.files], kept=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.shelf.discard(partial)
            raise
        entries.write_manifest(partial, _listed(model, received))
        try:
            partial.rename(entry)
        except OSError:
            if not entry.exists():  # else a successor in the lock was faster
                raise
            self.shelf.discard(partial)
        # What was received was just digested: it need not be read again.
        self.leases.note(source, Note(key=model.key, signatures=entries.signatures(entry / FILES, received)))

    def _heal(self, entry: Path, model: RemoteModel, stored: StoredModel, damaged: Collection[str]) -> None:
        """In place, for others may use the files that are whole."""
        known = {file.path for file in model.files}
        for path, name in ((entry / FILES / name, name) for name in damaged):
            if name not in known or path.is_symlink() or not path.is_file():
                entries.remove(path)
        received = _files(model, entry / FILES, [name for name in damaged if name in known], kept=False)
        entries.write_manifest(entry, stored.model_copy(update={"files": stored.files | _stored(received)}))


def _files(model: RemoteModel, target: Path, wanted: list[str], *, kept: bool) -> dict[str, Digest]:
    """Downloads files, several at a time, and returns what they contain. Those that are there may be `kept`."""
    for folder in sorted({parent for name in wanted for parent in Path(safe_path(name)).parents} | {Path()}):
        entries.make_own_folder(target / folder)
    entries.remove(target / _HUB_NOTES)
    received: dict[str, Digest] = {}

    def get(name: str) -> None:
        received[name] = (_there(model, target / name, name) if kept else None) or model.download(name, target)

    at_once(get, wanted)
    entries.remove(target / _HUB_NOTES)
    return received


def _there(model: RemoteModel, file: Path, name: str) -> Digest | None:
    """What a file of an earlier download contains, if it is the listed one as far as can be known."""
    if not model.lasts(name) or not file.is_file() or file.is_symlink():
        return None
    found = digest_of(file)
    return found if model.is_listed(name, found) else None


class _Arrived(Exception):
    """What was waited for is there."""


@dataclass
class _Waiting:
    """Called while another process holds the lock of a model. _Arrived once it has put the model there, so that all who
    wait can verify it at the same time; Unusable if it makes no progress."""

    key: str
    cache: SharedModels
    seen: int = -1
    since: float = field(default_factory=time.monotonic)
    next_look: float = 0.0

    def __post_init__(self) -> None:
        self.missing = not self.cache.shelf.entry(self.key).exists()

    def __call__(self) -> None:
        if self.missing and self.cache.shelf.entry(self.key).exists():
            raise _Arrived
        if self.seen < 0:
            self.cache.tell("model cache: another pod downloads the model; waiting for it")
        if (now := time.monotonic()) < self.next_look:
            return
        self.next_look = now + self.cache.stuck_seconds / 30  # many may wait, on a volume that answers slowly
        shelf = self.cache.shelf  # a new model grows in the first folder, files of a damaged one in the second
        size = sum(entries.size_of(folder) for folder in (shelf.partial(self.key), shelf.entry(self.key)))
        if size != self.seen:
            self.seen, self.since = size, now
        elif now - self.since > self.cache.stuck_seconds:
            raise Unusable(f"another pod's download has made no progress for {self.cache.stuck_seconds:.0f} s")


def _listed(model: RemoteModel, received: Mapping[str, Digest] | None = None) -> StoredModel:
    """The manifest of a model, with digests once they are known."""
    files = {file.path: StoredFile(size=file.size) for file in model.files}
    return StoredModel(uri=model.uri, revision=model.revision, files=files | _stored(received or {}))


def _stored(received: Mapping[str, Digest]) -> dict[str, StoredFile]:
    return {name: StoredFile(size=digest.size, sha256=digest.sha256) for name, digest in received.items()}


def _told(outcome: Outcome, seconds: float) -> str:
    did = {"hit": "verified", "miss": "downloaded", "healed": "verified and repaired"}[outcome.result]
    size, used = _size(outcome.model_bytes), _size(outcome.used_bytes)
    return f"model cache: {outcome.result}, {size} {did} in {seconds:.1f} s; all models in it have {used}"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
