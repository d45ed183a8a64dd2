"""Prefix tuning: keys and values of n virtual tokens in every layer, n·2·L·k."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.methods import Method
from finetune_trainer.planning.model import ModelShape

from .base import Kept
from .prompt import LearnedInput


class LearnedCache(LearnedInput):
    def trained(self, shape: ModelShape, method: Method) -> int:
        return method.virtual_tokens * 2 * shape.layers * shape.key_value

    def kept(self, shape: ModelShape, method: Method, width: int, *, row: int) -> Kept:
        """Each layer joins the prefix and a row's keys and values into new tensors."""
        joined = 2 * shape.layers * 2 * shape.key_value * width
        return replace(super().kept(shape, method, width, row=row), around=joined)


FOOTPRINT = LearnedCache()
