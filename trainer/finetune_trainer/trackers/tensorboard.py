"""Event files for TensorBoard, of every run.

While a run is under way they are in `<run dir>/tensorboard/`, and once a minute also in
`<output>/.finetune/<uid>/tensorboard/`, where they stay if the run fails. The artifact of a run that succeeds has its
own file (`events.of_record`), and the copy is removed.

What that costs is bounded: a file has about `CURVE_POINTS` training steps, is less than a megabyte, and is uploaded
only after a new point; of a job that is interrupted again and again, the last `MOST_ATTEMPTS` attempts are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from finetune_api import names
from finetune_api.failures import FinetuneError
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.opening import open_folder

from . import events
from .base import Ending, Kind, TrackedRun
from .points import Outcome, Point

UPLOAD_SECONDS = 60.0
MOST_ATTEMPTS = 10
"""Whose curves are kept in the store. Each attempt has those of the earlier ones up to the checkpoint it began from."""


def place(uid: str) -> str:
    return f".finetune/{uid}/{events.FOLDER}"


class TensorBoard:
    """See the module. A failed upload is tried again with the next one; the local file does not depend on it."""

    def __init__(self, run: TrackedRun, folder: Folder, *, clock: Callable[[], float] = time.time) -> None:
        self._run, self._store, self._clock = run, folder, clock
        self._file = run.folder / events.FOLDER / "none"
        self._uploaded = clock()
        self._pruned = False

    def start(self) -> str:
        folder = self._run.folder / events.FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*tfevents*"):  # its points come again, from the checkpoint
            old.unlink()
        now = self._clock()
        self._file = folder / events.file_name(self._run.job.name, now)
        self._file.write_bytes(events.opening("manifest", self._run.manifest, now))
        return str(folder)

    def log(self, points: Sequence[Point]) -> None:
        now = self._clock()
        self._write(b"".join(events.scalars(point.step, now, point.values) for point in points))
        if now - self._uploaded >= UPLOAD_SECONDS:
            self._uploaded = now
            with suppress(FinetuneError, OSError):  # the points are written: not to be logged again
                self._upload()

    def finish(self, outcome: Outcome) -> None:
        self._write(events.scalars(outcome.step, self._clock(), outcome.values))
        for entry in self._store.list(place(self._run.job.uid)):
            self._store.delete(entry.path)

    def leave(self, _ending: Ending) -> None:
        self._upload()

    def _write(self, records: bytes) -> None:
        with self._file.open("ab") as file:
            file.write(records)

    def _upload(self) -> None:
        """A folder for each attempt, which TensorBoard shows as a run: the last one has all points."""
        folder = place(self._run.job.uid)
        self._store.put(f"{folder}/{self._run.attempt}/{self._file.name}", self._file.read_bytes())
        if self._pruned or self._run.attempt <= MOST_ATTEMPTS:
            return
        for entry in self._store.list(folder):
            attempt = entry.path.removeprefix(f"{folder}/").partition("/")[0]
            if attempt.isdecimal() and int(attempt) <= self._run.attempt - MOST_ATTEMPTS:
                self._store.delete(entry.path)
        self._pruned = True


def _open(run: TrackedRun, environ: Mapping[str, str]) -> TensorBoard:
    return TensorBoard(run, open_folder(run.output, prefix=names.PREFIX_OUTPUT, environ=environ))


TENSORBOARD = Kind(title="TensorBoard", asked_by=lambda _: "always", open=_open)
