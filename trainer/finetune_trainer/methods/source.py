"""The files of a base model, from which a whole model takes over what did not train, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from finetune_trainer.parallel.weight_names import DTYPES, account_of
from finetune_trainer.store.tensors import StoredTensor, stored_tensors, weight_files

from .base import Base


@dataclass(frozen=True)
class Source:
    """`names`: weight or saved buffer → its tensor in the files."""

    tensors: Mapping[str, StoredTensor]
    names: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    """Of each weight in `names`."""
    left_out: tuple[str, ...]
    """Tensors that the class does not load, and that belong to the model all the same (heads for other tasks)."""

    @classmethod
    def of(cls, base: Base) -> Source | None:
        """None where the folder is not known, or holds no weights."""
        if base.folder is None or not weight_files(base.folder):
            return None
        return cls.in_folder(base.folder)

    @classmethod
    def in_folder(cls, folder: Path) -> Source:
        """ModelUnsupported as `account_of`."""
        tensors, found = stored_tensors(folder), account_of(folder)
        dtypes = {name: DTYPES[tensors[tensor].dtype] for name, tensor in found.sources.items()}
        return cls(tensors, found.sources, dtypes, found.left_out)

    def read(self, tensor: str) -> torch.Tensor:
        """By its name in the files."""
        with safe_open(self.tensors[tensor].file, framework="pt") as opened:
            read: torch.Tensor = opened.get_tensor(tensor)
        return read
