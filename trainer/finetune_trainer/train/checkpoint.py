"""Snapshots of a run, and the thread that saves them while training continues.

    Snapshot          named tensors (trainable weights, optimizer moments) and JSON state, copied to the CPU
    CheckpointWriter  one save at a time in the background; what goes wrong there is raised in the next call here
    load              the tensors and the state of a checkpoint

A step waits only for the copy to the CPU, and for the save before if that is still under way. Tensors are stored one
file for each group (the part of a name before the first `/`), so that a group which did not change is not sent again.

Nothing depends on the number of processes. Where all ranks hold equal tensors, global rank 0 writes. Where each has its
rows, it writes those, in a file for each group and part (`weights.0-of-8.safetensors`), and rank 0 the state; any other
number of ranks reads its own rows out of these files (`checkpoint_reader`), or whole tensors put together from them.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finetune_trainer.store.checkpoints import Checkpoint, CheckpointStore

from .process_exit import SaveThread

STATE = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """A moment of a run. Tensor names are `group/name`, for instance `weights/…` and `moments/…`."""

    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]
    """JSON: step, cursor, random number states, scores so far."""
    part: int = 0
    """The tensors are rows of the whole: this one of `parts`, see `parallel.base.rows_of`."""
    parts: int = 1

    def read(self, name: str, rows: slice) -> torch.Tensor:
        tensor = self.tensors[name]
        return tensor[rows] if tensor.ndim else tensor

    def copy(self, into: Mapping[str, torch.Tensor] | None = None) -> Snapshot:
        """Independent of what training changes next: on the CPU, contiguous, in memory of its own, or in that of an
        earlier copy that is no longer needed: filling newly allocated memory takes five times as long."""
        into = into or {}
        copies = {name: _to_cpu(tensor, into.get(name)) for name, tensor in self.tensors.items()}
        if any(tensor.is_cuda for tensor in self.tensors.values()):
            torch.cuda.synchronize()
        return replace(self, tensors=copies, state=json.loads(json.dumps(self.state, allow_nan=False)))

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes files into a local folder: one for each group, and state.json with part 0. Returns name → path."""
        files = {}
        for group in sorted({group_of(name) for name in self.tensors}):
            members = {name: t for name, t in self.tensors.items() if group_of(name) == group}
            name = file_name(group, self.part, self.parts)
            files[name] = folder / name
            save_file(members, files[name])
        if self.part == 0:
            files[STATE] = folder / STATE
            files[STATE].write_text(json.dumps(self.state, sort_keys=True, allow_nan=False))
        return files


def group_of(tensor: str) -> str:
    return tensor.partition("/")[0]


def file_name(group: str, part: int, parts: int) -> str:
    return f"{group}.safetensors" if parts == 1 else f"{group}.{part}-of-{parts}.safetensors"


def files_of(group: str, files: Iterable[str]) -> list[str]:
    """The names that a group's parts have in a checkpoint of these files, in order; whether they are there or not."""
    found = (re.fullmatch(rf"{group}\.\d+-of-(\d+)\.safetensors", name) for name in files)
    parts = next((int(match[1]) for match in found if match), 1)
    return [file_name(group, part, parts) for part in range(parts)]


def read(folder: Path) -> Snapshot:
    """The snapshot whose parts `Snapshot.write` left in a folder, whole and in memory of its own."""
    files = {file.name for file in folder.glob("*.safetensors")}
    tensors: dict[str, torch.Tensor] = {}
    for group in sorted({name.partition(".")[0] for name in files}):
        with ExitStack() as opened:
            parts = [opened.enter_context(safe_open(folder / n, framework="pt")) for n in files_of(group, files)]
            for name in parts[0].keys():  # noqa: SIM118  it is no mapping
                rows = [part.get_tensor(name) for part in parts]
                tensors[name] = rows[0].clone() if len(rows) == 1 else torch.cat(rows)
    return Snapshot(tensors, json.loads((folder / STATE).read_text()))


def load(store: CheckpointStore, checkpoint: Checkpoint, *, scratch: Path | None = None) -> Snapshot:
    """Downloads and verifies. store.checkpoints.Broken if the checkpoint was damaged since it was chosen."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch) as folder:
        store.load(checkpoint, Path(folder))
        return read(Path(folder))


class CheckpointWriter:
    """Saves snapshots in the background, one at a time. Of part 0: commits them too, and prunes after each."""

    def __init__(self, store: CheckpointStore, *, keep: int, scratch: Path | None = None) -> None:
        """`scratch` holds one snapshot at a time while it is sent; default: the system's temporary folder."""
        self._store = store
        self._keep = keep
        self._scratch = scratch
        self._copied: Mapping[str, torch.Tensor] = {}
        self._thread: SaveThread | None = None
        self._error: BaseException | None = None
        self._saved_step: int | None = None

    @property
    def saved_step(self) -> int | None:
        """The newest step that is safe, by this writer."""
        return self._saved_step

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def submit(self, step: int, snapshot: Snapshot, *, best_step: int | None = None, save: str = "") -> None:
        """Copies the snapshot, then saves it in the background; the checkpoint of `best_step` stays too. `save`: what
        the writers of all parts call this save, and no other.

        Waits for the save before this one. Raises what went wrong in it.
        """
        self.wait()
        copied = snapshot.copy(self._copied)
        self._copied = copied.tensors
        also = frozenset() if best_step is None else frozenset({best_step})
        self._thread = SaveThread(
            lambda leaving: self._run(step, copied, also, save, leaving), name=f"checkpoint-{step}"
        )
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way. Raises what went wrong, once."""
        self.done(within=None)

    def done(self, *, within: float | None) -> bool:
        """Whether nothing is under way any more, after so many seconds at most. Raises what went wrong, once."""
        if self._thread is not None:
            self._thread.join(within)
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return True

    def free(self) -> None:
        """Lets go of the memory for copies, which is kept from save to save."""
        self.wait()
        self._copied = {}

    def _run(self, step: int, snapshot: Snapshot, also: frozenset[int], save: str, leaving: threading.Event) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=self._scratch) as folder:
                files = self._store.keep(snapshot.write(Path(folder)))
            others = self._store.parts(save, snapshot.parts)
            if snapshot.part:
                others.tell(snapshot.part, files)
                return
            if snapshot.parts > 1:
                files |= others.told(leaving)
            self._store.commit(Checkpoint(step, files, {"step": step}))
            self._saved_step = step
            self._store.prune(self._keep, also)
        except BaseException as error:  # everything crosses over to the thread that waits
            self._error = error


def _to_cpu(tensor: torch.Tensor, into: torch.Tensor | None) -> torch.Tensor:
    if into is None or (into.shape, into.dtype) != (tensor.shape, tensor.dtype):
        into = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
    return into.copy_(tensor.detach(), non_blocking=True)
