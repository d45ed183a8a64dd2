"""A checkpoint that the ranks of a gang save together: each stores its own files, then says so in a record,

    .finetune/<uid>/parts/<save>/<part>.json

and rank 0 commits the manifest when it has all of them. Background threads do this, where no collective may run: they
meet in the store and nowhere else. A save has a name that was drawn for it alone. So what a killed attempt has left is
never part of a checkpoint, not of the same step either; it is removed with everything else that is not needed.

Why not torch.distributed.checkpoint: its save ends with a collective, in the background too, its index is a pickle, and
of what a checkpoint is here (blobs by content, digests, a manifest last) a writer and a reader for it would have to be
written all the same, and a planner besides.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event

from finetune_api.failures import FinetuneError, Reason

from .folder import Folder, safe_path
from .manifest import FileEntry, canonical
from .retries import waits

PATIENCE = 1800.0
"""Seconds without another record: a rank that takes so much longer for its files than the others is stuck."""
LEAVING = 20.0
"""The same once this process ends: ranks that end as well store their files meanwhile, or are gone."""


@dataclass(frozen=True)
class Parts:
    """The records of one save, by `count` ranks."""

    folder: Folder
    root: str
    count: int
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def tell(self, part: int, files: Mapping[str, FileEntry]) -> None:
        """That the files of a part are stored."""
        record = {name: entry.to_json() for name, entry in files.items()}
        self.folder.put(self._record(part), canonical(record))

    def told(self, leaving: Event) -> dict[str, FileEntry]:
        """The files of all parts but part 0, once all are stored. StorageUnavailable where records stay away; they are
        not waited for much longer when `leaving` is set."""
        found: dict[int, dict[str, FileEntry]] = {}
        leaves, deadline = False, self.clock() + PATIENCE
        for wait in waits(random.Random(), first=0.01, most=2.0):
            there = {entry.path for entry in self.folder.list(self.root)}
            new = {part for part in range(1, self.count) if self._record(part) in there} - found.keys()
            found |= {part: self._read(part) for part in new}
            if len(found) == self.count - 1:
                break
            if new or leaves != leaving.is_set():
                leaves = leaving.is_set()
                deadline = self.clock() + (LEAVING if leaves else PATIENCE)
            if self.clock() >= deadline:
                raise self._missing([part for part in range(1, self.count) if part not in found])
            self.sleep(wait)
        return {name: entry for part in sorted(found) for name, entry in found[part].items()}

    def _record(self, part: int) -> str:
        return f"{self.root}/{part}.json"

    def _read(self, part: int) -> dict[str, FileEntry]:
        try:
            record = json.loads(self.folder.read(self._record(part)))
            return {safe_path(name): FileEntry.model_validate(entry) for name, entry in record.items()}
        except (ValueError, AttributeError) as error:
            raise FinetuneError(
                Reason.DataUnreadable, f"{self.folder.uri}/{self._record(part)} is damaged: the checkpoint is not saved"
            ) from error

    def _missing(self, parts: list[int]) -> FinetuneError:
        shown = ", ".join(map(str, parts[:8])) + (", …" if len(parts) > 8 else "")
        return FinetuneError(
            Reason.StorageUnavailable,
            f"a checkpoint is not saved: nothing was heard in {self.folder.uri} of the files of rank {shown}",
            "Those ranks are gone, cannot write there, or their nodes see another folder: use an object store, or a "
            "claim that all nodes mount.",
        )
