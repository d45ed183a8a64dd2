"""What tells one model's files from another's, in a few reads of a few kilobytes.

A file of weights has a header, and each tensor's middle: training changes a tensor all over, so a piece of each one is
enough to see that it is another, and neither sizes nor times of files are. Every other file is read whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

PIECE = 1024
"""Bytes of each tensor that count, or all that it has."""


def sampled(files: list[Path]) -> dict[str, str]:
    """sha256 by file name. Of a safetensors file that of its header and pieces; OSError, and ValueError for a header
    that is none."""
    return {file.name: _sample(file) if file.suffix == ".safetensors" else _whole(file) for file in files}


def _whole(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sample(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        read: Callable[[int], bytes] = opened.read
        length = int.from_bytes(read(8), "little")
        header = read(length)
        found.update(header)
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        for begin, end in sorted(tuple(tensor["data_offsets"]) for tensor in tensors):
            opened.seek(8 + length + max(begin, (begin + end - PIECE) // 2))
            found.update(read(min(PIECE, end - begin)))
    return found.hexdigest()
