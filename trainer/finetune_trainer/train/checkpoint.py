"""Snapshots of a run, and the thread that saves them while training goes on.

    Snapshot          named tensors (trainable weights, optimizer moments) and JSON state, copied to the CPU
    CheckpointWriter  one save at a time in the background; what goes wrong there is raised in the next call here
    load              the tensors and the state of a checkpoint

A step waits only for the copy to the CPU, and for the save before if that is still under way. Tensors are stored one
file for each group (the part of a name before the first `/`), so that a group which did not change is not sent again.
Nothing depends on the number of processes: the ranks of DDP hold equal tensors, and global rank 0 writes.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from finetune_trainer.store.checkpoints import Checkpoint, CheckpointStore

from .leave import SAVE_THREAD

_STATE = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """A moment of a run. Tensor names are `group/name`, for instance `weights/…` and `moments/…`."""

    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]
    """JSON: step, cursor, random number states, scores so far."""

    def copy(self) -> Snapshot:
        """Independent of what training changes next: on the CPU, contiguous, in memory of its own."""
        copies = {name: _to_cpu(tensor) for name, tensor in self.tensors.items()}
        if any(tensor.is_cuda for tensor in self.tensors.values()):
            torch.cuda.synchronize()
        return Snapshot(copies, json.loads(json.dumps(self.state, allow_nan=False)))

    def write(self, folder: Path) -> dict[str, Path]:
        """As files in a local folder: `<group>.safetensors` and state.json. Returns name → path."""
        files = {}
        for group in sorted({_group(name) for name in self.tensors}):
            members = {name: t for name, t in self.tensors.items() if _group(name) == group}
            files[f"{group}.safetensors"] = folder / f"{group}.safetensors"
            save_file(members, files[f"{group}.safetensors"])
        files[_STATE] = folder / _STATE
        files[_STATE].write_text(json.dumps(self.state, sort_keys=True, allow_nan=False))
        return files


def read(folder: Path) -> Snapshot:
    """The snapshot that `Snapshot.write` left in a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return Snapshot(tensors, json.loads((folder / _STATE).read_text()))


def load(store: CheckpointStore, checkpoint: Checkpoint, *, scratch: Path | None = None) -> Snapshot:
    """Downloads and verifies. store.checkpoints.Broken if the checkpoint was damaged since it was chosen."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch) as folder:
        store.load(checkpoint, Path(folder))
        return read(Path(folder)).copy()


class CheckpointWriter:
    """Saves snapshots in the background, one at a time, and prunes after each. Of global rank 0 alone."""

    def __init__(self, store: CheckpointStore, *, keep: int, scratch: Path | None = None) -> None:
        """`scratch` holds one checkpoint at a time while it is sent; default: the system's temporary folder."""
        self._store = store
        self._keep = keep
        self._scratch = scratch
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved_step: int | None = None

    @property
    def saved_step(self) -> int | None:
        """The newest step that is safe, by this writer."""
        return self._saved_step

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def submit(self, step: int, snapshot: Snapshot, *, best_step: int | None = None) -> None:
        """Copies the snapshot, then saves it in the background; the checkpoint of `best_step` stays too.

        Waits for the save before this one. Raises what went wrong in it.
        """
        self.wait()
        copied = snapshot.copy()
        also = frozenset() if best_step is None else frozenset({best_step})
        self._thread = threading.Thread(target=self._run, args=(step, copied, also), name=f"{SAVE_THREAD}{step}")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way. Raises what went wrong, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, step: int, snapshot: Snapshot, also: frozenset[int]) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=self._scratch) as folder:
                self._store.save(step, snapshot.write(Path(folder)), {"step": step})
            self._saved_step = step
            self._store.prune(self._keep, also)
        except BaseException as error:  # everything crosses over to the thread that waits
            self._error = error


def _group(name: str) -> str:
    return name.partition("/")[0]


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_cuda:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        return pinned.copy_(tensor.detach(), non_blocking=True)
    return tensor.detach().clone(memory_format=torch.contiguous_format)
