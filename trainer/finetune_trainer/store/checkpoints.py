"""Checkpoints of one run in its output folder, addressed by content:

    .finetune/<uid>/blobs/<sha256>              a file of one or more checkpoints; what did not change is stored once
    .finetune/<uid>/checkpoints/000000040.json  what step 40 consists of; written last, with a digest of itself
    .finetune/<uid>/notes/<name>.json           what a run decided before its first step, and every attempt keeps to
    .finetune/<uid>/parts/<save>/<part>.json    what one rank has stored of a save in progress (`checkpoint_parts`)

A checkpoint exists when its manifest does. Nothing is trusted unread: `latest` reads every blob, and falls back, with a
warning, to the checkpoint before one that is broken. Only one process of a run commits and prunes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.failures import FinetuneError, Reason
from finetune_api.plan import JobIdentity

from .checkpoint_parts import Parts
from .fetch import at_once
from .folder import Digest, Folder, NotFound, digest_of, safe_path
from .manifest import FileEntry, canonical, entries
from .ranges import Ranges

_log = logging.getLogger(__name__)
_VERSION = 1


class Broken(FinetuneError):
    """A checkpoint that cannot be used: a blob or its manifest is damaged or gone. Who has another takes that."""

    def __init__(self, message: str) -> None:
        super().__init__(
            Reason.DataUnreadable,
            message,
            "The store lost or changed a file of the run. Start again: another FineTuneJob, or finetune run --fresh.",
        )


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` optimizer steps."""

    step: int
    files: Mapping[str, FileEntry]
    meta: Mapping[str, Any]
    """JSON that was given to `save`."""

    def encode(self) -> bytes:
        body = {
            "version": _VERSION,
            "step": self.step,
            "files": {name: entry.to_json() for name, entry in self.files.items()},
            "meta": dict(self.meta),
        }
        return canonical({**body, "digest": _digest(body)})


@dataclass(frozen=True)
class CheckpointStore:
    folder: Folder
    run: JobIdentity
    _stored: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    """Blobs (sha256 → size) that this process wrote or read in full. Others may be damaged and are written again."""
    _broken: set[int] = field(default_factory=set, repr=False, compare=False)
    """Steps that `latest` passed over."""

    def save(self, step: int, files: Mapping[str, bytes | Path], meta: Mapping[str, Any]) -> None:
        """Commits a checkpoint; uploads only what is not stored yet. Saving a step again replaces it."""
        self.commit(Checkpoint(step, self.keep(files), meta))

    def keep(self, files: Mapping[str, bytes | Path]) -> dict[str, FileEntry]:
        """Files of a checkpoint to come: nothing may be pruned until it is committed."""
        digests = {safe_path(name): digest_of(data) for name, data in files.items()}
        there = {entry.path.rpartition("/")[2]: entry.size for entry in self.folder.list(self._blobs)}
        wanted = {digest: files[name] for name, digest in digests.items()}
        missing = [d for d in wanted if there.get(d.sha256) != d.size or self._stored.get(d.sha256) != d.size]
        at_once(lambda digest: self._put(digest, wanted[digest]), missing)
        return entries(digests)

    def commit(self, checkpoint: Checkpoint) -> None:
        """All of its files are kept."""
        self.folder.put(self._manifest(checkpoint.step), checkpoint.encode())
        self._broken.discard(checkpoint.step)

    def parts(self, save: str, count: int) -> Parts:
        """The records of a save by `count` processes, whose name no other save ever had."""
        return Parts(self.folder, f"{self._records}/{save}", count)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, rising, whether they are complete or not."""
        names = [entry.path.rpartition("/")[2] for entry in self.folder.list(self._manifests)]
        return sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d{9,}\.json", name))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint of which every byte is right."""
        for step in reversed(self.steps()):
            try:
                checkpoint = self.get(step)
                self.check(checkpoint)
                return checkpoint
            except Broken as error:
                self.pass_over(step, error.message)
        return None

    def check(self, checkpoint: Checkpoint, share: slice = slice(None)) -> None:
        """Reads all files, or a share of them. Broken."""
        at_once(lambda item: self._check(*item), list(checkpoint.files.items())[share])

    def pass_over(self, step: int, fault: str) -> None:
        """This checkpoint is broken: say so, and remember it."""
        _log.warning("checkpoint of step %d is broken: %s; trying the one before", step, fault)
        self._broken.add(step)

    def get(self, step: int) -> Checkpoint:
        """The checkpoint of a step, its blobs unread. Broken."""
        try:
            return _decode(self.folder.read(self._manifest(step)), step)
        except NotFound as error:
            raise Broken(f"there is no checkpoint of step {step} in {self.folder.uri}") from error

    def load(self, checkpoint: Checkpoint, target: Path) -> None:
        """The checkpoint's files into the local folder `target`, each verified. Broken."""
        at_once(lambda item: self._download(target, *item), checkpoint.files.items())

    def ranges(self, checkpoint: Checkpoint, name: str) -> Ranges:
        """One of its files, to be read in parts, which are not verified. Broken where it is not there, or another."""
        expected = checkpoint.files.get(name)
        found = self.folder.stat(self._blob(expected.sha256)) if expected else None
        if expected is None or found is None:
            raise Broken(f"{name} is missing")
        if found.size != expected.size:
            raise Broken(f"{name} is truncated: {found.size} bytes of {expected.size}")
        return Ranges(name, found.size, lambda start, stop: self.folder.read_range(found, start, stop))

    def prune(self, keep: int, also: set[int] | frozenset[int] = frozenset()) -> None:
        """Removes all checkpoints but the newest `keep` and the steps in `also`, then what none of the others needs.
        One that is broken counts for nothing: it would take the place of what a run saves after it fell back. Not while
        another process saves."""
        steps = self.steps()
        whole = [step for step in steps if step not in self._broken]
        kept = {*whole[-keep:], *also} if keep > 0 else set(also)
        for step in steps:
            if step not in kept:
                self.folder.delete(self._manifest(step))
        needed = {entry.sha256 for step in steps if step in kept for entry in self._files(step)}
        for entry in self.folder.list(self._blobs):
            sha256 = entry.path.rpartition("/")[2]
            if sha256 not in needed:
                self._stored.pop(sha256, None)
                self.folder.delete(entry.path)
        for entry in self.folder.list(self._records):  # of saves that are done, or never will be
            self.folder.delete(entry.path)

    def note(self, name: str, value: Any) -> None:
        """Keeps a decision (JSON) for the attempts to come."""
        self.folder.put(f"{self._notes}/{name}.json", canonical(value))

    def noted(self, name: str) -> Any:
        """The decision of an earlier attempt; None where there is none."""
        try:
            return json.loads(self.folder.read(f"{self._notes}/{name}.json"))
        except NotFound:
            return None
        except ValueError as error:
            raise Broken(f"the note {name} in {self.folder.uri} is damaged") from error

    def clear(self) -> None:
        """Removes everything: for a run whose artifact is committed."""
        self.prune(keep=0)
        for entry in self.folder.list(self._notes):
            self.folder.delete(entry.path)

    @property
    def _root(self) -> str:
        return f".finetune/{self.run.uid}"

    @property
    def _notes(self) -> str:
        return f"{self._root}/notes"

    @property
    def _blobs(self) -> str:
        return f"{self._root}/blobs"

    @property
    def _records(self) -> str:
        return f"{self._root}/parts"

    @property
    def _manifests(self) -> str:
        return f"{self._root}/checkpoints"

    def _manifest(self, step: int) -> str:
        return f"{self._manifests}/{step:09d}.json"

    def _blob(self, sha256: str) -> str:
        return f"{self._blobs}/{sha256}"

    def _put(self, digest: Digest, data: bytes | Path) -> None:
        self.folder.put(self._blob(digest.sha256), data)
        self._stored[digest.sha256] = digest.size

    def _files(self, step: int) -> list[FileEntry]:
        """None for a broken manifest: it cannot be loaded, so nothing needs to be kept for it."""
        try:
            return list(self.get(step).files.values())
        except Broken:
            return []

    def _check(self, name: str, expected: FileEntry) -> None:
        try:
            found = self.folder.digest(self._blob(expected.sha256))
        except NotFound as error:
            raise Broken(f"{name} is missing") from error
        self._accept(name, expected, found)

    def _download(self, target: Path, name: str, expected: FileEntry) -> None:
        file = target / safe_path(name)
        try:
            found = self.folder.download(self._blob(expected.sha256), file)
        except NotFound as error:
            raise Broken(f"{name} is missing") from error
        try:
            self._accept(name, expected, found)
        except Broken:
            file.unlink()
            raise

    def _accept(self, name: str, expected: FileEntry, found: Digest) -> None:
        if found.size < expected.size:
            raise Broken(f"{name} is truncated: {found.size} bytes of {expected.size}")
        if found != expected.digest:
            raise Broken(f"{name} is corrupted: sha256 {found.sha256[:12]}… instead of {expected.sha256[:12]}…")
        self._stored[found.sha256] = found.size


def _decode(data: bytes, step: int) -> Checkpoint:
    try:
        body = json.loads(data)
        digest = body.pop("digest")
        if digest != _digest(body) or body["version"] != _VERSION or body["step"] != step:
            raise ValueError("its digest, version or step is not right")
        files = {safe_path(name): FileEntry.model_validate(entry) for name, entry in body["files"].items()}
        return Checkpoint(step, files, body["meta"])
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError, FinetuneError) as error:
        raise Broken(f"the manifest of step {step} is damaged ({type(error).__name__})") from error


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()
