"""P-tuning: a table of virtual tokens and the network of three layers that makes them."""

from __future__ import annotations

from finetune_api.methods import Method, PTuning
from finetune_trainer.planning.model import ModelShape

from .prompt import LearnedInput


class Encoded(LearnedInput):
    def trained(self, shape: ModelShape, method: Method) -> int:
        settings = method.ptuning or PTuning()
        h, inner = shape.hidden, settings.hidden or shape.hidden
        return settings.virtual_tokens * h + (h + 1) * inner + (inner + 1) * inner + (inner + 1) * h


FOOTPRINT = Encoded()
