"""What a shared cache of models holds, how a model in it is checked, and what has to go for another one.

<root>/models/<key>/manifest.json      uri, revision, size and sha256 of each file; its time is that of the last use
<root>/models/<key>/files/…            the model
<root>/models/<key>.partial/           the same while it is downloaded; its manifest says how much that will be
<root>/leases/<key>.<name>             touched as long as a run uses the model, see shared_leases
<root>/locks/<key>, <root>/locks/space held while a model is downloaded, and while space is made
<root>/trash/                          what is being deleted

Other pods of the namespace write here too. So what is read is bounded, names are judged, and links are not followed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from finetune_api.base import ApiModel
from finetune_api.failures import FinetuneError

from .fetch import at_once
from .folder import Digest, digest_of, safe_path
from .local import replacing

LEASE_SECONDS = 900.0
"""Age at which a lease that was not touched no longer counts."""
PARTIAL = ".partial"
MANIFEST, FILES = "manifest.json", "files"
_KEY = re.compile(r"^[0-9a-f]{32}$")
_MANIFEST_BYTES = 16 << 20
_GROUP_WRITES = stat.S_IWGRP

Signature = list[int]
"""Size, time of change and number of a file: equal ones have the same content, unless a writer resets the time."""


class CacheFull(Exception):
    """No space can be made for a model."""


class StoredFile(ApiModel):
    size: int = Field(ge=0)
    sha256: str = ""


class StoredModel(ApiModel):
    """The manifest of a model in the cache."""

    uri: str
    revision: str | None = None
    files: dict[str, StoredFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class Shelf:
    """The paths below a cache's root."""

    root: Path

    @property
    def models(self) -> Path:
        return self.root / "models"

    def entry(self, key: str) -> Path:
        return self.models / key

    def partial(self, key: str) -> Path:
        return self.models / f"{key}{PARTIAL}"

    def lock(self, name: str) -> Path:
        return self.root / "locks" / name

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    def prepare(self) -> bool:
        """Makes the folders, for all users of the volume's group. False if one of them is a link. OSError."""
        folders = [self.root / name for name in ("models", "locks", "leases", "trash")]
        for folder in folders:
            make_folder(folder)
        return not any(folder.is_symlink() for folder in folders)

    def misplaced(self, key: str) -> list[Path]:
        """Links and files in the place of a model's folders: what is written below a link is written elsewhere."""
        of = (self.entry(key), self.partial(key))
        return [path for each in of for path in (each, each / FILES) if _misplaced(path)]

    def clear(self, key: str) -> None:
        for path in self.misplaced(key):
            remove(path)

    def discard(self, path: Path) -> None:
        """Renames a folder out of the way at once, and deletes it then."""
        grave = self.root / "trash" / f"{path.name}.{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):
            path.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Other users of the group may remove what is in it, as pods with another runAsUser."""
    path.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode
    if not mode & _GROUP_WRITES:
        with suppress(PermissionError):
            path.chmod(mode | _GROUP_WRITES)


def make_own_folder(path: Path) -> None:
    """The same, in place of a link or a file that another pod has put there."""
    if _misplaced(path):
        remove(path)
    make_folder(path)


def _misplaced(path: Path) -> bool:
    return path.is_symlink() or (path.exists() and not path.is_dir())


def read_manifest(entry: Path) -> StoredModel | None:
    """None if there is none that can be believed."""
    try:
        with (entry / MANIFEST).open("rb") as opened:
            found = StoredModel.model_validate_json(opened.read(_MANIFEST_BYTES))
        for name in found.files:
            safe_path(name)
    except (OSError, ValidationError, FinetuneError):
        return None
    return found


def write_manifest(entry: Path, model: StoredModel) -> None:
    with replacing(entry / MANIFEST) as opened:
        opened.write(model.model_dump_json(by_alias=True, exclude_none=True).encode())


@dataclass(frozen=True)
class Checked:
    """What a look at a model's files found."""

    damaged: tuple[str, ...]
    """Names of files that are missing or are not what the manifest says, and of those that it does not have."""
    signatures: dict[str, Signature]
    """Of the others."""


def check(files: Path, model: StoredModel, *, trusted: Mapping[str, Signature], read: bool = True) -> Checked:
    """Reads every file but those whose signature is the trusted one. Without `read` the others count as damaged."""
    bad, good = list[str](), dict[str, Signature]()

    def look(item: tuple[str, StoredFile]) -> None:
        name, stored = item
        path = files / name
        found = _signature(path)
        if found is None or found[0] != stored.size or _leaves(files, path):
            bad.append(name)
        elif found == trusted.get(name) or (read and _digest(path) == Digest(stored.sha256, stored.size)):
            good[name] = found
        else:
            bad.append(name)

    at_once(look, model.files.items())
    strangers = [name for name in _names(files) if name not in model.files]
    return Checked(tuple(sorted([*bad, *strangers])), good)


def signatures(files: Path, wanted: Iterable[str]) -> dict[str, Signature]:
    """Of the named files that are there."""
    return {name: found for name in wanted if (found := _signature(files / name)) is not None}


def _signature(path: Path) -> Signature | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino] if stat.S_ISREG(found.st_mode) else None


def _leaves(files: Path, path: Path) -> bool:
    """Whether a folder on the way is a link."""
    return any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(files))


def _digest(path: Path) -> Digest | None:
    try:
        return digest_of(path)
    except OSError:
        return None


def _names(files: Path) -> Iterator[str]:
    for base, folders, names in os.walk(files):
        links = [name for name in folders if Path(base, name).is_symlink()]
        for name in (*names, *links):
            yield Path(base, name).relative_to(files).as_posix()


def used_bytes(shelf: Shelf) -> int:
    """Of all models, and of what those that are being downloaded will have."""
    return sum(each.size for each in _entries(shelf))


def make_space(shelf: Shelf, key: str, needed: int, *, bound: int, now: float, dead_seconds: float) -> None:
    """Removes the models that were not used for the longest time until `needed` bytes more are within the bound, and
    on the volume. CacheFull, and nothing is removed, if that cannot be reached without one that is in use. Under the
    lock `space`."""
    if needed > bound:
        raise CacheFull(f"the model has more bytes than its bound, {bound / 1e9:.1f} GB")
    for old in (shelf.root / "trash").iterdir():
        shutil.rmtree(old, ignore_errors=True)
    entries = [each for each in _entries(shelf) if each.path != shelf.partial(key)]
    taken, more = sum(each.size for each in entries), needed - size_of(shelf.partial(key))
    if taken + needed <= bound and more <= free_bytes(shelf.root):
        return
    unused = _unused(shelf, entries, now=now, dead_seconds=dead_seconds)
    most = free_bytes(shelf.root) + sum(size_of(each.path / FILES) for each in unused)
    if unused and (taken - sum(each.size for each in unused) + needed > bound or more > most):
        raise CacheFull("too little space for the model, even without all models that no run uses")
    candidates = iter(sorted(unused, key=lambda each: each.last_use))
    while taken + needed > bound or more > free_bytes(shelf.root):
        if (oldest := next(candidates, None)) is None:
            raise CacheFull("full, and every model in it is in use")
        if _removed(shelf, oldest):
            taken -= oldest.size


def free_bytes(root: Path) -> int:
    """What the volume has left for this user."""
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


def capacity(root: Path) -> int:
    """Bytes of the volume."""
    found = os.statvfs(root)
    return found.f_blocks * found.f_frsize


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    last_use: float

    @property
    def key(self) -> str:
        return self.path.name.removesuffix(PARTIAL)

    @property
    def partial(self) -> bool:
        return self.path.name.endswith(PARTIAL)


def _entries(shelf: Shelf) -> list[_Entry]:
    found = []
    for path in shelf.models.iterdir():
        if _KEY.match(path.name.removesuffix(PARTIAL)):
            known = read_manifest(path)
            size = known.size if known else size_of(path)
            found.append(_Entry(path, size, _time(path / MANIFEST)))
    return found


def _unused(shelf: Shelf, entries: Iterable[_Entry], *, now: float, dead_seconds: float) -> list[_Entry]:
    """Those that no run uses or downloads; leases of runs that died are removed. Some file systems take times from the
    writer's clock, which may be wrong. So a lease or lock that looks old is watched for `dead_seconds`: if its time
    changes, a process still touches it."""
    before = {each: _signs(shelf, each) for each in entries}
    idle = []
    for each, signs in before.items():
        oldest = now - (dead_seconds if each.partial else LEASE_SECONDS)
        if all(seen <= oldest for seen in signs.values()):
            idle.append(each)
    if any(before[each] for each in idle):
        time.sleep(dead_seconds)
    unused = [each for each in idle if not _signs(shelf, each).items() - before[each].items()]
    for lease in (lease for each in unused if not each.partial for lease in before[each]):
        lease.unlink(missing_ok=True)
    return unused


def _signs(shelf: Shelf, entry: _Entry) -> dict[Path, float]:
    """Times of the files that the users of a model touch: leases, or the lock of a download."""
    files = [shelf.lock(entry.key)] if entry.partial else shelf.leases.glob(f"{entry.key}.*")
    return {file: seen for file in files if (seen := _time(file))}


def _removed(shelf: Shelf, entry: _Entry) -> bool:
    """A user makes a lease first and looks for the model then. So one that is renamed and has no lease is unused."""
    if entry.partial:
        shelf.discard(entry.path)
        return True
    aside = shelf.root / "trash" / f"{entry.key}.{secrets.token_hex(4)}"
    entry.path.rename(aside)
    if any(shelf.leases.glob(f"{entry.key}.*")):
        aside.rename(entry.path)
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _time(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    total = 0
    for base, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += Path(base, name).lstat().st_size
    return total


def remove(path: Path) -> None:
    """A file, a link or a folder."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
