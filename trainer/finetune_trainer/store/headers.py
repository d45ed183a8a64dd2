"""The one reader of safetensors headers, for files on disk and for files in a store.

A safetensors file begins with 8 bytes, the header's length (little-endian); then comes the header in JSON, then the
tensors' bytes. Files come from strangers, so no more is read or believed than the format allows: the length is bounded
before anything is read, and each entry must have a dtype, a shape and a range of bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 100_000_000
"""The longest header in bytes that the safetensors library reads."""

_LENGTH = 8


class MalformedHeader(ValueError):
    """The file is not a valid safetensors file; the message says why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file} is not a valid safetensors file: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class TensorEntry:
    """What a header says about one tensor."""

    dtype: str
    """The format's name, `BF16` or `F32`."""
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    stop: int
    """Offset after its last byte. The file may be shorter, if it was truncated."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.stop - self.start

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """All entries by name, in the order of the file, without the metadata."""

    tensors: Mapping[str, TensorEntry]
    raw: bytes
    """The JSON as it is in the file."""
    start: int
    """Offset of the first byte after the header."""

    @property
    def stop(self) -> int:
        """Size in bytes of a complete file."""
        return max((entry.stop for entry in self.tensors.values()), default=self.start)


def file_header(file: Path) -> Header:
    """The header of a file on disk. OSError, or MalformedHeader."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        return read_header(lambda start, stop: opened.read(stop - start), size=size, file=file.name)


def read_header(read: Callable[[int, int], bytes], *, size: int, file: str) -> Header:
    """The header of a file of `size` bytes, by two calls of `read(start, stop)`, one after the other.

    MalformedHeader, or whatever `read` raises; `file` is the name that a message gives it.
    """
    if size < _LENGTH:
        raise MalformedHeader(file, f"it has {size} bytes, and the header's length alone takes {_LENGTH}")
    length = int.from_bytes(read(0, _LENGTH), "little")
    if length > LIMIT:
        raise MalformedHeader(file, f"its header would have {length} bytes, more than {LIMIT}")
    start = _LENGTH + length
    if start > size:
        raise MalformedHeader(file, f"its header would have {length} bytes, and the file has {size}")
    raw = read(_LENGTH, start)
    try:
        header = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedHeader(file, "its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise MalformedHeader(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return Header({name: _entry(file, name, entry, start) for name, entry in header.items()}, raw, start)


def _entry(file: str, name: str, entry: Any, start: int) -> TensorEntry:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if (
            _are_sizes([*shape, begin, end]) and begin <= end
        ):
            return TensorEntry(dtype, tuple(shape), start + begin, start + end)
    raise MalformedHeader(file, f"the entry of tensor {name[:200]!r} needs a dtype, a shape and a range of bytes")


def _are_sizes(values: list[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
