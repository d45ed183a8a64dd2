"""The rungs of the ladder, from the cheapest to the most expensive. A rung trains one method."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.ladder import BASE as BASE  # noqa: PLC0414  # the rung below all others
from finetune_api.methods import TRAITS


@dataclass(frozen=True, kw_only=True)
class Rung:
    method: str
    """The value of method.type."""
    baseline: bool
    """Cheap and of little capacity: no gain of it says little about the rungs above, so the ladder continues."""
    why: str
    """What it is on the ladder for."""


_WHY = {
    "probe": "reads what the frozen model already knows; costs one pass over the rows",
    "prompt": "changes only the input of the frozen model",
    "lora": "matches full fine-tuning while its capacity suffices",
    "qlora": "lora with the base in 4 bits, where memory demands it",
    "partial": "trains the last layers, with all their capacity",
    "full": "trains all weights: the most capacity, memory and forgetting",
}


def rung(method: str) -> Rung:
    """KeyError for a name that is not a method's."""
    traits = TRAITS[method]
    baseline = not traits.steps or traits.virtual is not None
    return Rung(method=method, baseline=baseline, why=_WHY.get(method, traits.summary))
