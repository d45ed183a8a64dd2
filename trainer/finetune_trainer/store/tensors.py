"""The tensors of a model in a folder: names, shapes, dtypes and offsets, from the headers of its safetensors files.

The files are those that transformers reads: `model.safetensors`, else the ones that the index names. Other files in the
folder are not part of the model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .headers import TensorEntry, file_header

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor(TensorEntry):
    """One tensor of a model, and the file that holds it."""

    file: Path


def weight_files(folder: Path) -> list[Path]:
    """The files of the model in `folder`; empty where it has no weights in safetensors, ValueError for an index that
    cannot be read."""
    return [folder / ONE_FILE] if (folder / ONE_FILE).is_file() else indexed_files(folder)


def indexed_files(folder: Path) -> list[Path]:
    """The files that the index names; empty where there is no index."""
    if not (folder / INDEX).is_file():
        return []
    try:
        named = json.loads((folder / INDEX).read_bytes())["weight_map"].values()
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{INDEX} has no weight_map") from error
    files = sorted({str(name) for name in named})
    if elsewhere := [name for name in files if Path(name).name != name]:
        raise ValueError(f"{INDEX} names {elsewhere[0]!r}, which is not a file next to it")
    return [folder / name for name in files]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the model in `folder`, by name. OSError, or ValueError for a malformed header or index."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        found |= tensors_of(file)
    return found


def tensors_of(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file. OSError or MalformedHeader."""
    entries = file_header(file).tensors
    return {
        name: StoredTensor(entry.dtype, entry.shape, entry.start, entry.stop, file) for name, entry in entries.items()
    }
