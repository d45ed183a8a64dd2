"""A network in float32, whatever its weights are stored in: each operation widens what it is given, and nothing is
narrowed again. Never more than one weight is held twice.

It costs a copy of every weight that is used: for a few tokens, not for training.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_NARROW = (torch.bfloat16, torch.float16)

_LOOKS = frozenset({
    "__getitem__", "embedding", "view", "reshape", "transpose", "t", "permute", "unsqueeze", "squeeze", "expand",
    "flatten", "chunk", "split", "unbind", "detach", "contiguous", "size", "dim", "numel", "is_floating_point",
    "data_ptr", "requires_grad_", "stride", "is_contiguous", "narrow", "select", "swapaxes", "movedim",
    "untyped_storage",
})  # fmt: skip
"""What answers with a part of its argument, in another shape, or with a fact about it: widened where it is used."""


class FullPrecision(TorchFunctionMode):
    """Inside, torch's functions compute in float32 where they would in fewer bits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if caller.startswith("torch.distributed"):  # weights in shards travel as they are stored
            return func(*args, **(kwargs or {}))
        if name in _LOOKS or name == "__get__":
            return func(*args, **(kwargs or {}))
        if name in ("bfloat16", "half"):
            return args[0].float()
        # What is written to stays itself, else the result would be written to a copy.
        kept = args[:1] if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) else ()
        return func(*kept, *tree_map(_wide, args[len(kept) :]), **tree_map(_wide, kwargs or {}))


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and type(value) in (Tensor, torch.nn.Parameter) and value.dtype in _NARROW:
        return value.float()
    return torch.float32 if isinstance(value, torch.dtype) and value in _NARROW else value
