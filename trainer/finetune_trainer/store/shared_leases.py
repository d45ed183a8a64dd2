"""Which run uses which model of a shared cache, so that no other one removes it.

A lease is a file that is touched as long as the model is used. In a pod several processes use it one after the other:
preflight and ranks. So the agent, which outlives them, touches their leases (`keeping`), and gives them a folder for
notes. A process without an agent touches its own lease until it ends.

    <notes>/<key>.lease     the path of the run's lease on a model
    <notes>/<source>.note   a Note
    <notes>/outcome.json    an Outcome, for the agent's metrics and the report of the run
"""

from __future__ import annotations

import atexit
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Literal

from pydantic import ValidationError

from finetune_api import names
from finetune_api.base import ApiModel
from finetune_trainer.rundir import write_atomic

from .shared_entries import LEASE_SECONDS, Shelf

BEAT_SECONDS = LEASE_SECONDS / 15
OUTCOME = "outcome.json"
_FOLDER = "model-cache"
_GROUP_WRITES = 0o664

Result = Literal["hit", "miss", "healed", "bypass"]


class Outcome(ApiModel):
    """How a node got its model."""

    result: Result
    model_bytes: int = 0
    used_bytes: int = 0
    """Of the cache, by all models in it."""
    why: str = ""
    """For bypass: why the cache was not used."""

    def __str__(self) -> str:
        return f"{self.result}: {self.why}" if self.why else self.result


class Note(ApiModel):
    """What a process has found out, for those that follow it in the same run."""

    key: str
    """Of the model that the source means."""
    signatures: dict[str, list[int]]
    """By file, of those that were read and found to be whole."""


class Leases:
    """The leases and notes of one run, or of one process if `notes` is None."""

    def __init__(self, shelf: Shelf, notes: Path | None) -> None:
        self.shelf, self.notes = shelf, notes

    def take(self, key: str) -> None:
        """Makes sure that this run has a lease on the model. OSError if the volume cannot be written."""
        file = self.notes / f"{key}.lease" if self.notes else None
        model = self.shelf.leases / key
        lease = _OWN.get(model) if file is None else _path(file)
        lease = lease or self.shelf.leases / f"{key}.{secrets.token_hex(6)}"
        touch(lease)
        if file is None:
            _keep_own(model, lease)
        else:
            write_atomic(file, str(lease))

    def note(self, source: str, note: Note) -> None:
        if self.notes is not None:
            write_atomic(self.notes / f"{source}.note", note.model_dump_json(by_alias=True))

    def noted(self, source: str) -> Note | None:
        if self.notes is None:
            return None
        try:
            return Note.model_validate_json((self.notes / f"{source}.note").read_bytes())
        except (OSError, ValidationError):
            return None

    def end(self, outcome: Outcome) -> None:
        """Keeps the first outcome of the run: later processes find what the first one has fetched."""
        if self.notes is not None and not (self.notes / OUTCOME).exists():
            write_atomic(self.notes / OUTCOME, outcome.model_dump_json(by_alias=True))

    @property
    def outcome(self) -> Outcome | None:
        return _outcome(self.notes) if self.notes is not None else None


def touch(lease: Path) -> None:
    """Makes the file if it is not there: one that was suspended may have lost it."""
    made = not lease.exists()
    lease.touch()
    if made:
        lease.chmod(_GROUP_WRITES)


@contextmanager
def keeping(run_dir: Path, environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """In the agent: keeps the leases of its processes while the block runs. Yields what they need in the environment;
    nothing if there is no shared cache."""
    if not environ.get(names.ENV_MODEL_CACHE):
        yield {}
        return
    notes = run_dir / _FOLDER
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    stop = Event()
    thread = Thread(target=_touch_all, args=(notes, stop), name="leases", daemon=True)
    thread.start()
    try:
        yield {names.ENV_MODEL_CACHE_NOTES: str(notes)}
    finally:
        stop.set()
        thread.join()
        for lease in _leases_of(notes):
            with suppress(OSError):
                lease.unlink()


def cache_outcome(run_dir: Path) -> Outcome | None:
    """How the node of a run directory got its model; None before that, and without a shared cache."""
    return _outcome(run_dir / _FOLDER)


def _outcome(notes: Path) -> Outcome | None:
    try:
        return Outcome.model_validate_json((notes / OUTCOME).read_bytes())
    except (OSError, ValidationError):
        return None


def _touch_all(notes: Path, stop: Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        for lease in _leases_of(notes):
            with suppress(OSError):
                touch(lease)


def _leases_of(notes: Path) -> list[Path]:
    return [path for file in notes.glob("*.lease") if (path := _path(file)) is not None]


def _path(file: Path) -> Path | None:
    try:
        return Path(file.read_text())
    except OSError:
        return None


_OWN: dict[Path, Path] = {}
"""Leases of this process, by folder of the leases and key of the model: one process may use two caches."""


def _keep_own(model: Path, lease: Path) -> None:
    if not _OWN:
        Thread(target=_touch_own, name="leases", daemon=True).start()
        atexit.register(_drop_own)
    _OWN[model] = lease


def _touch_own() -> None:
    while not Event().wait(BEAT_SECONDS):
        for lease in list(_OWN.values()):
            with suppress(OSError):
                touch(lease)


def _drop_own() -> None:
    for lease in _OWN.values():
        with suppress(OSError):
            lease.unlink()
