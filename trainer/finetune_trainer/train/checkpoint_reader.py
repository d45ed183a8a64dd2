"""A checkpoint's tensors, read where they lie: of each the rows that are asked for, out of the parts that have them.

So a rank of a sharded model reads its rows, however many ranks wrote them, and no more is in memory than they are. They
are not verified again: every byte was read when the checkpoint was chosen, and a blob is never rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finetune_trainer.store.checkpoints import Broken, Checkpoint, CheckpointStore
from finetune_trainer.store.headers import MalformedHeader, TensorEntry, read_header
from finetune_trainer.store.ranges import Ranges

from .checkpoint import STATE, files_of, group_of

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class CheckpointReader:
    """parallel.base.Saved. Its errors: Broken for what is not as it was written, and those of the store."""

    store: CheckpointStore
    checkpoint: Checkpoint
    _opened: dict[str, _Part] = field(default_factory=dict, repr=False, compare=False)

    @property
    def state(self) -> Mapping[str, Any]:
        """The state, as `Snapshot.state`."""
        ranges = self.store.ranges(self.checkpoint, STATE)
        state: Mapping[str, Any] = json.loads(ranges.read(0, ranges.size))
        return state

    def read(self, name: str, rows: slice) -> Tensor:
        files = files_of(group_of(name), self.checkpoint.files)
        each = self._part(files[0]).rows(name)
        start, stop, _ = rows.indices(each * len(files))
        holders = range(start // each, -(-stop // each)) if stop > start else range(1)
        parts = [self._part(files[i]).read(name, start - i * each, stop - i * each) for i in holders]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, file: str) -> _Part:
        if file not in self._opened:
            self._opened[file] = _Part.open(file, self.store.ranges(self.checkpoint, file))
        return self._opened[file]


@dataclass(frozen=True)
class _Part:
    """A safetensors file in a store."""

    file: str
    ranges: Ranges
    tensors: Mapping[str, TensorEntry]

    @classmethod
    def open(cls, file: str, ranges: Ranges) -> _Part:
        try:
            return cls(file, ranges, read_header(ranges.read, size=ranges.size, file=file).tensors)
        except MalformedHeader as error:
            raise Broken(str(error)) from error

    def rows(self, name: str) -> int:
        return self._of(name).shape[0]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows from `start` to `stop`, as far as there are any between them."""
        entry = self._of(name)
        rows, *shape = entry.shape
        start, stop = max(0, start), min(stop, rows)
        width = entry.size // max(1, rows)
        dtype = _TYPES[entry.dtype]
        if start >= stop:
            return torch.empty(0, *shape, dtype=dtype)
        read = bytearray(self.ranges.read(entry.start + start * width, entry.start + stop * width))
        return torch.frombuffer(read, dtype=dtype).view(stop - start, *shape)

    def _of(self, name: str) -> TensorEntry:
        if name not in self.tensors:
            raise Broken(f"{self.file} has no {name}")
        return self.tensors[name]
