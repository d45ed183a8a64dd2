"""The committed result of a run. Readers trust a folder only through its manifest, so a commit goes like this:

    1. the manifest of an earlier artifact is removed (a note of its files stays, to clear away what is replaced)
    2. content is uploaded, several files at once
    3. files that only the earlier artifact had are removed
    4. the new manifest is written

Whatever fails in between leaves a folder without a manifest: nothing is committed, and doing it again ends well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from finetune_api.failures import FinetuneError, Reason
from finetune_api.plan import JobIdentity
from finetune_api.status import Artifact, Servable
from finetune_api.switching import SwitchTest

from .fetch import at_once
from .folder import Digest, Folder, NotFound, digest_of, safe_path
from .manifest import MANIFEST, Climbed, Kind, Manifest, Promotion, canonical, decode, entries
from .sequence import Sequence
from .trained_on import TrainedOn

_REPLACED = ".finetune/replaced.json"
"""Names of files of an earlier artifact, from the moment its manifest goes until they are gone too."""


class Fault(StrEnum):
    missing = "missing"
    truncated = "truncated"
    corrupted = "corrupted"
    invalid = "invalid"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one file of an artifact."""

    path: str
    fault: Fault
    message: str

    def __str__(self) -> str:
        return f"{self.path} is {self.fault}: {self.message}"


@dataclass(frozen=True)
class VerifyReport:
    problems: tuple[Problem, ...]
    manifest: Manifest | None

    @property
    def ok(self) -> bool:
        return not self.problems


def check_output(folder: Folder, run: JobIdentity, overwrite: bool) -> None:
    """OutputExists if the folder holds another run's artifact (or a manifest.json of something else)."""
    if overwrite:
        return
    try:
        owner = decode(folder.read(MANIFEST)).run
    except NotFound:
        return
    except ValueError:
        raise FinetuneError(
            Reason.OutputExists, f"{folder.uri} holds a {MANIFEST} that finetune did not write"
        ) from None
    if owner.uid != run.uid:
        raise FinetuneError(
            Reason.OutputExists, f"{folder.uri} holds the artifact of {owner.namespace}/{owner.name} (uid {owner.uid})"
        )


def commit_artifact(
    folder: Folder,
    files: Mapping[str, bytes | Path],
    *,
    run: JobIdentity,
    kind: Kind,
    overwrite: bool,
    servable: Servable | None = None,
    promotion: Promotion | None = None,
    temperature: float | None = None,
    ladder: Climbed | None = None,
    switch_test: SwitchTest | None = None,
    continual: Sequence | None = None,
    trained_on: TrainedOn | None = None,
) -> Artifact:
    """Makes `files` (name in the folder → content) the artifact of the folder. OutputExists as in check_output."""
    for name in files:
        if name == MANIFEST or safe_path(name).startswith(".finetune/"):
            raise ValueError(f"{name} is a name of the store's own")
    check_output(folder, run, overwrite)
    digests = {name: digest_of(data) for name, data in files.items()}
    manifest = Manifest(
        run=run,
        kind=kind,
        servable=servable,
        temperature=temperature,
        promotion=promotion,
        ladder=ladder,
        switch_test=switch_test,
        continual=continual,
        trained_on=trained_on,
        files=entries(digests),
    )
    _withdraw(folder)
    at_once(lambda item: folder.put(*item), sorted(files.items(), key=_largest_first))
    _clear_replaced(folder, manifest)
    folder.put(MANIFEST, manifest.encode())
    return describe(folder, manifest)


def describe(folder: Folder, manifest: Manifest) -> Artifact:
    """The artifact as status shows it."""
    return Artifact(
        uri=folder.uri,
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        kind=manifest.kind,
        servable=manifest.servable,
        switch_test=manifest.switch_test,
    )


def read_manifest(folder: Folder) -> Manifest:
    """NotFound where nothing is committed; DataUnreadable where the manifest is none."""
    data = folder.read(MANIFEST)
    try:
        return decode(data)
    except ValueError as error:
        raise FinetuneError(
            Reason.DataUnreadable, f"{folder.uri}/{MANIFEST} is not a manifest ({error})", "Commit the artifact again."
        ) from error


def verify(folder: Folder, digest: str | None = None) -> VerifyReport:
    """Reads every file of the artifact and compares; with `digest` (of status.artifact) the manifest itself too."""
    try:
        data = folder.read(MANIFEST)
    except NotFound:
        return VerifyReport((Problem(MANIFEST, Fault.missing, f"nothing is committed in {folder.uri}"),), None)
    try:
        manifest = decode(data)
    except ValueError as error:
        return VerifyReport((Problem(MANIFEST, Fault.invalid, f"not a manifest: {error}"),), None)
    found: list[Problem] = []
    if data != manifest.encode() or (digest and digest != manifest.digest):
        found.append(Problem(MANIFEST, Fault.corrupted, "the manifest is not the one that was committed"))
    sizes = {entry.path: entry.size for entry in folder.list()}
    at_once(
        lambda item: found.extend(_compare(folder, item[0], item[1].digest, sizes.get(item[0]))), manifest.files.items()
    )
    return VerifyReport(tuple(sorted(found, key=lambda p: p.path)), manifest)


def _compare(folder: Folder, name: str, expected: Digest, size: int | None) -> list[Problem]:
    try:
        safe_path(name)
    except FinetuneError as error:
        return [Problem(name, Fault.invalid, error.message)]
    if size is None:
        return [Problem(name, Fault.missing, "the file is not there")]
    if size < expected.size:
        return [Problem(name, Fault.truncated, f"{size} bytes of {expected.size}")]
    if size > expected.size:
        return [Problem(name, Fault.corrupted, f"{size} bytes instead of {expected.size}")]
    try:
        found = folder.digest(name)
    except NotFound:
        return [Problem(name, Fault.missing, "the file is not there")]
    if found == expected:
        return []
    return [Problem(name, Fault.corrupted, f"sha256 {found.sha256[:12]}… instead of {expected.sha256[:12]}…")]


def _withdraw(folder: Folder) -> None:
    """Step 1. The note is written before the manifest goes, else an interruption would lose the names."""
    try:
        old = decode(folder.read(MANIFEST))
    except NotFound:
        return
    except ValueError:
        folder.delete(MANIFEST)
        return
    folder.put(_REPLACED, canonical(sorted({*old.files, *_replaced(folder)})))
    folder.delete(MANIFEST)


def _clear_replaced(folder: Folder, new: Manifest) -> None:
    """Step 3."""
    if not (names := _replaced(folder)):
        return
    for name in names - new.files.keys():
        folder.delete(name)
    folder.delete(_REPLACED)


def _replaced(folder: Folder) -> set[str]:
    try:
        return {safe_path(name) for name in json.loads(folder.read(_REPLACED))}
    except NotFound:
        return set()
    except ValueError:  # not JSON: nothing can be known, and nothing is deleted
        return set()


def _largest_first(item: tuple[str, bytes | Path]) -> tuple[int, str]:
    name, data = item
    return -(len(data) if isinstance(data, bytes) else data.stat().st_size), name
