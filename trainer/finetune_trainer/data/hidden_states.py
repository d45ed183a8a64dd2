"""What a network's frozen layers make of a corpus' rows: an array next to its tokens, mapped and never computed twice.

It is stored in files of consecutive rows, each whole or absent, so that processes can share the work and one that was
stopped continues where it was. Numbers of 16 bits are kept as their bits: numpy knows no bfloat16.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .corpus import Numbers

Array = NDArray[Any]


@dataclass(frozen=True)
class Chunks:
    """Which file holds which rows."""

    folder: Path
    offsets: Numbers
    """(rows + 1,): where each row starts, of the corpus."""
    starts: Numbers
    """(files + 1,): the first row of each file; the last is the number of rows."""

    @classmethod
    def of(cls, folder: Path, offsets: Numbers, *, tokens: int) -> Chunks:
        """Files of about `tokens` tokens. With rows of 3, 3 and 3 and 6 tokens to a file: rows 0 and 1, then row 2."""
        edges = np.arange(0, max(1, int(offsets[-1])), max(1, tokens))
        starts = np.unique(np.searchsorted(offsets[:-1], edges, side="left"))
        return cls(folder, offsets, np.unique(np.append(starts[starts < len(offsets) - 1], len(offsets) - 1)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, index: int) -> Numbers:
        return np.arange(self.starts[index], self.starts[index + 1])

    def places(self, index: int) -> Numbers:
        """(rows of this file + 1,): where each of them starts in it."""
        here: Numbers = self.offsets[self.starts[index] : self.starts[index + 1] + 1]
        places: Numbers = here - here[0]
        return places

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npy"

    def fill(self, index: int, compute: Callable[[Numbers, Numbers], Array]) -> None:
        """Unless it is there: `compute` gets rows and places, and answers (tokens of the file, dim)."""
        if self.path(index).exists():
            return
        beside = self.folder / f".{index:06d}.{os.getpid()}"
        with beside.open("wb") as file:
            np.save(file, compute(self.rows(index), self.places(index)))
        beside.replace(self.path(index))

    def open(self, lock: IO[str]) -> KeptStates:
        return KeptStates(self, tuple(np.load(self.path(index), mmap_mode="r") for index in range(len(self))), lock)


@dataclass(frozen=True)
class KeptStates:
    chunks: Chunks
    arrays: tuple[Array, ...]
    lock: IO[str]
    """Open, it keeps the files from being pruned."""

    @property
    def dim(self) -> int:
        return int(self.arrays[0].shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.arrays[0].dtype

    def row(self, index: int) -> Array:
        """(length of the row, dim)"""
        starts, offsets = self.chunks.starts, self.chunks.offsets
        chunk = int(np.searchsorted(starts, index, side="right")) - 1
        first = offsets[starts[chunk]]
        return self.arrays[chunk][offsets[index] - first : offsets[index + 1] - first]
