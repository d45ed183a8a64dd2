"""A rank without what its machine has no use for."""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

import torch


def disable_triton(device: torch.device) -> None:
    """Without a GPU, transformers and torch find no Triton from now on, as where torch is built for CPUs. They import
    that compiler of GPU kernels wherever it is installed: 72 MB of each rank."""
    if device.type == "cpu" and "triton" not in sys.modules:
        sys.modules["triton"] = cast(Any, None)
        logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # which would miss it, aloud
