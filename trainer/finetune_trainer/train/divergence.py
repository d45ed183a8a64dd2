"""KL(base ‖ tuned) on held-out rows of the task, for evaluation.klToBase.

The base model is the same network with its adapter switched off, so there is no second copy; it costs two passes over
the test rows, or the validation rows without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.measurements import Divergence
from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.methods.base import Attached, SwitchesOff
from finetune_trainer.statistics.divergence import per_token
from finetune_trainer.transfer.evaluate import Array, Floats, summed_by_row
from finetune_trainer.transfer.evidence import Subject, digests

from .loop import Trainer
from .model import LanguageModel


@dataclass(frozen=True)
class FromBase:
    """Of each target, the divergence of its distribution from the base model's."""

    model: LanguageModel
    as_base: Callable[[], AbstractContextManager[None]]

    def target_nats(self, batch: MicroBatch) -> Array:
        with self.as_base():
            base = self.model.outputs(batch)
        return self.model.target_divergences(batch, base)


def rows_of_the_task(subjects: Sequence[Subject]) -> Subject | None:
    """What is measured: the test rows, else the validation rows, else nothing."""
    found = {each.kind: each for each in subjects}
    return found.get("test") or found.get("validation")


def divergence(trainer: Trainer, attached: Attached, subject: Subject) -> tuple[Divergence, Floats]:
    """(the mean, the sum of each row (rows,)). Collective. Stopped when a rank was asked to stop, InvalidSpec for a
    method without a switch to the base."""
    if not isinstance(attached, SwitchesOff):
        raise FinetuneError(
            Reason.InvalidSpec,
            "evaluation.klToBase would need a second copy of the model with this method",
            "Remove it, or use method.type: lora.",
        )
    corpus, network = subject.corpus, trainer.model.network
    network.eval()
    try:
        with torch.no_grad():
            nats = summed_by_row(
                FromBase(trainer.model, attached.as_base),
                corpus,
                layout=trainer.layout,
                strategy=trainer.strategy,
                going_on=trainer.going_on,
            )
    finally:
        network.train()
    found = per_token(nats, corpus.targets, groups=digests(corpus)[1])
    told = Divergence(
        name="test" if subject.kind == "test" else "validation",
        value=found.value,
        low=found.low,
        high=found.high,
        rows=found.rows,
        groups=found.groups,
    )
    return told, nats
