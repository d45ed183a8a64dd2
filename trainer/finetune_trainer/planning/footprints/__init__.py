"""What each method costs: trained parameters, activations that are kept for the backward pass, workspace, operations.

One file for each method, with its name, in which `FOOTPRINT` has the protocol of `base`. `memory` and `speed` add what
all methods have in common, and never ask which method it is.

adapter, dora, full, lora, partial, prefix, probe, prompt, ptuning, qlora
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from finetune_api.methods import Method

from .base import Footprint, Kept, block_bytes

__all__ = ["Footprint", "Kept", "block_bytes", "footprint_of"]


def footprint_of(method: Method) -> Footprint:
    return _named(method.type)


@cache
def _named(kind: str) -> Footprint:
    found: Footprint = import_module(f"{__name__}.{kind}").FOOTPRINT
    return found
