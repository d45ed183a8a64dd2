"""Fingerprints that distinguish one model's files from another's, made by a few reads of a few kilobytes.

Of a file of weights the header and the middle of each tensor count: training changes a tensor everywhere, so a piece of
each is enough to notice that it is another, and sizes and times of files are not. Every other file is read completely.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .headers import file_header
from .tensors import weight_files

PIECE = 1024
"""Bytes of each tensor that count, or all that it has."""


def fingerprints_of(files: list[Path]) -> dict[str, str]:
    """sha256 by file name; for a safetensors file that of its header and pieces. OSError, or MalformedHeader."""
    return {file.name: _sample(file) if file.suffix == ".safetensors" else _whole(file) for file in files}


def fingerprint_of(model: Path) -> str:
    """Of all weights of the model in a folder, as one sha256. OSError, ValueError."""
    told = sorted(fingerprints_of(weight_files(model)).items())
    return hashlib.sha256("\n".join(f"{digest} {name}" for name, digest in told).encode()).hexdigest()


def _whole(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sample(file: Path) -> str:
    header = file_header(file)
    found = hashlib.sha256(header.raw)
    with file.open("rb", buffering=0) as opened:
        for start, stop in sorted((entry.start, entry.stop) for entry in header.tensors.values()):
            opened.seek(max(start, (start + stop - PIECE) // 2))
            found.update(opened.read(min(PIECE, stop - start)))
    return found.hexdigest()
