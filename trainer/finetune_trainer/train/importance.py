"""The importance of the weights for regularization.ewc: from the cache, or measured before the first step.

It is a function of the model, the general text and the seed, so it is kept under a digest of them, and the next attempt
on the same node does not measure it again. One that has to, on other processes, comes to the same up to rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus, Numbers
from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.methods.base import Attached, UpdatesByProducts
from finetune_trainer.random_streams import FISHER
from finetune_trainer.regularization.base import Penalty
from finetune_trainer.regularization.ewc import WeightedDistance, WeightedProducts, normalised
from finetune_trainer.regularization.fisher import DOCUMENTS, Drawn, Matrices, Parameters, Weights, diagonal
from finetune_trainer.transfer.evaluate import Layout

from . import tensor_cache
from .model import LanguageModel
from .reporter import Reporter

_VERSION = 1
"""Raised when the same inputs give something else."""


def ewc_of(
    spec: FineTuneJobSpec,
    attached: Attached,
    model: LanguageModel,
    layout: Layout,
    text: Corpus | None,
    *,
    folder: Path,
    of_model: str,
    reporter: Reporter,
) -> Iterator[Penalty]:
    """The term of regularization.ewc, if it is asked for, on general `text`; of rank 0 alone, since all hold the
    weights. Collective."""
    settings = spec.regularization.ewc
    if settings is None or text is None:
        return
    products = tuple(attached.products()) if isinstance(attached, UpdatesByProducts) else ()
    parameters = () if products else tuple(attached.trainable.values())
    measured = Importance(model, layout, text, spec.training.seed).of(
        Matrices(products) if products else Parameters(parameters),
        folder=folder,
        of_model=of_model,
        reporter=reporter,
    )
    mine = model.strategy.place.first
    if products:
        yield WeightedProducts(settings.strength, tuple(zip(products, measured, strict=True)) if mine else ())
    else:
        yield WeightedDistance.of(parameters if mine else (), measured if mine else (), settings.strength)


@dataclass(frozen=True)
class Importance:
    """Of a network that is as training starts from it."""

    model: LanguageModel
    layout: Layout
    text: Corpus
    seed: int

    def of(self, weights: Weights, *, folder: Path, of_model: str, reporter: Reporter) -> list[Tensor]:
        """With mean 1. Collective. `of_model`: a digest of its files."""
        strategy = self.model.strategy
        file = folder / f"{self._digest(weights, of_model)}.safetensors"
        if (kept := tensor_cache.read(file, strategy, self.model.device)) is not None:
            reporter.say("the importance of the weights is in the cache")
            return normalised([kept[str(at)] for at in range(len(kept))])
        reporter.phase("loading", f"measuring the importance of the weights on {len(self._rows)} documents")
        self.model.network.eval()
        try:
            found = diagonal(weights, self._documents(reporter), strategy, self.model.device)
        finally:
            self.model.network.train()
        if strategy.place.local_rank == 0:
            tensor_cache.write(file, {str(at): each for at, each in enumerate(found)})
        return normalised(found)

    @property
    def _rows(self) -> Numbers:
        return np.argsort(FISHER.raw(len(self.text), self.seed, 0), kind="stable")[:DOCUMENTS]

    def _documents(self, reporter: Reporter) -> Iterator[Drawn]:
        """Those of this rank. A document's labels are drawn by its own numbers, whichever rank has it."""
        place, rows, seeds = self.model.strategy.place, self._rows, FISHER.raw(DOCUMENTS, self.seed, 1)
        for at in range(place.rank, len(rows), place.world_size):
            [batch] = self.layout.batches(self.text, rows[at : at + 1])
            chance = torch.Generator(self.model.device).manual_seed(int(seeds[at]) >> 1)

            yield partial(self._drawn, batch, chance)
            reporter.alive()

    def _drawn(self, batch: MicroBatch, chance: torch.Generator) -> tuple[Tensor, int]:
        def draw(logits: Tensor) -> Tensor:
            return torch.multinomial(torch.softmax(logits, dim=1), 1, generator=chance).squeeze(1)

        return self.model.nats_of_drawn(batch, draw), batch.target_count

    def _digest(self, weights: Weights, of_model: str) -> str:
        told = hashlib.sha256(repr((_VERSION, of_model, self.seed, DOCUMENTS, self.model.autocast)).encode())
        told.update(repr((weights.shapes, self.model.head.dtype)).encode())
        for row in self._rows:
            tokens, trained = self.text.row(int(row))
            told.update(tokens.tobytes() + trained.tobytes())
        return told.hexdigest()[:32]
