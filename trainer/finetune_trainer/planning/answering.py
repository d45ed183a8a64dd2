"""What generated answers cost, for `finetune plan`: forward passes, and the seconds that they need at least."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_api.generation import Generate
from finetune_api.progress_text import span
from finetune_trainer.planning.devices import Device
from finetune_trainer.planning.spread import Spread

PROMPTS = 16
"""Of a batch, at most: see `train.answering`."""
ANSWERS = 4
"""To each prompt: base and tuned model, greedy and sampled."""


@dataclass(frozen=True, kw_only=True)
class Answering:
    answers: int
    """At most; of all prompts."""
    passes: int
    """Of a rank, at most: each makes one token of each answer of a batch."""
    seconds: float
    """At least: every pass reads all weights, and gathers those that other ranks have."""
    gathered: bool
    """Whether weights are gathered from other ranks for each token."""

    @property
    def told(self) -> str:
        more = ", for each of which all weights are gathered from the other processes" if self.gathered else ""
        return (
            f"evaluation.generate: up to {self.answers:,} answers in {self.passes:,} passes of each process{more}; at "
            f"least {span(self.seconds)} if no answer ends early, and more where a pass waits for the CPU"
        )


def answering(settings: Generate, *, weights: int, device: Device, spread: Spread, network: float) -> Answering:
    """weights: bytes of the whole model. network: bandwidth between ranks in bytes per second."""
    batches = math.ceil(settings.max_rows / PROMPTS)
    passes = ANSWERS * math.ceil(batches / spread.ranks) * settings.max_new_tokens
    shards = (spread.shards or spread.ranks) if spread.shards_weights else 1
    sent = weights * (1 - 1 / shards) / network
    return Answering(
        answers=ANSWERS * settings.max_rows,
        passes=passes,
        seconds=passes * (weights / device.bandwidth + sent),
        gathered=shards > 1,
    )
