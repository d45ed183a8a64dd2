"""What regularization.drift holds to, the inputs of each adapted matrix on general text: from the cache, or measured
before the first step.

They are a function of the model, the text and the seed, so they are kept under a digest of these, and the next attempt
on the same node does not measure them again. Each rank runs its share of the documents, and all get the inputs of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from finetune_api.failures import FinetuneError, Reason
from finetune_api.regularization import DRIFT_TOKENS
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.order import share
from finetune_trainer.data.pack import idle
from finetune_trainer.data.token_sample import TokenSample
from finetune_trainer.methods.base import Attached, Product, UpdatesByProducts
from finetune_trainer.regularization.base import Penalty
from finetune_trainer.regularization.drift import ActivationDrift, Seen, shared, watched
from finetune_trainer.transfer.evaluate import Layout

from . import tensor_cache
from .importance import ewc_of
from .model import LanguageModel
from .reporter import Reporter
from .token_states import layout_of

_EACH = 8
"""Tokens of a document: about 70 documents."""
_VERSION = 1
"""Raised when the same inputs give something else."""


def held_to(
    spec: FineTuneJobSpec,
    attached: Attached,
    model: LanguageModel,
    layout: Layout,
    text: Corpus | None,
    *,
    cache: Path,
    of_model: str,
    reporter: Reporter,
) -> Iterator[Penalty]:
    """The terms that hold to something that is measured on general `text` before the first step. Collective.
    `of_model`: a digest of the model as training starts from it."""
    yield from ewc_of(
        spec, attached, model, layout, text, folder=cache / "fisher", of_model=of_model, reporter=reporter
    )  # fmt: skip
    yield from drift_of(
        spec, attached, model, text, pad_id=layout.pad_id, folder=cache / "drift", of_model=of_model, reporter=reporter
    )


def drift_of(
    spec: FineTuneJobSpec,
    attached: Attached,
    model: LanguageModel,
    text: Corpus | None,
    *,
    pad_id: int,
    folder: Path,
    of_model: str,
    reporter: Reporter,
) -> Iterator[Penalty]:
    """The term of regularization.drift, if it is asked for, on general `text`; of rank 0 alone, since all hold the
    factors. Collective."""
    settings = spec.regularization.drift
    if settings is None or text is None:
        return
    if not isinstance(attached, UpdatesByProducts):
        raise FinetuneError(
            Reason.InvalidSpec,
            f"regularization.drift is of low-rank updates, and method.type {spec.method.type} makes others",
            "Use method.type: lora, or regularization.l2sp.",
        )
    products = tuple(attached.products())
    sample = TokenSample.of(text, tokens=DRIFT_TOKENS, seed=spec.training.seed, each=_EACH)
    measured = Activations(model, sample, pad_id).of(
        products, folder=folder, of_model=f"{of_model} {spec.method.traits.four_bits}", reporter=reporter
    )
    mine = zip(products, measured, strict=True) if model.strategy.place.first else ()
    yield ActivationDrift(settings.strength, len(products), tuple(mine))


@dataclass(frozen=True)
class Activations:
    """Of a network that is as training starts from it."""

    model: LanguageModel
    sample: TokenSample
    pad_id: int
    sizes: ClassVar[str] = "sizes"

    def of(self, products: tuple[Product, ...], *, folder: Path, of_model: str, reporter: Reporter) -> list[Seen]:
        """Collective. `of_model`: a digest of its files."""
        strategy = self.model.strategy
        file = folder / f"{self._digest(products, of_model)}.safetensors"
        if (found := tensor_cache.read(file, strategy, self.model.device)) is not None:
            reporter.say("the activations on general text are in the cache")
            inputs = [found[str(int(place))] for place in found["places"].tolist()]
            return [Seen(each, size) for each, size in zip(inputs, found[self.sizes], strict=True)]
        count = len(self.sample.documents)
        reporter.phase("loading", f"measuring activations on {count:,} tokens of general text")
        inputs, sizes = self._measured(products, reporter)
        for each in (*inputs, sizes):
            strategy.sum_gradients([each.view(-1)])  # the other ranks' tokens are zeros
        inputs, sizes = shared(inputs), sizes / count
        if strategy.place.local_rank == 0:
            places = [next(at for at, other in enumerate(inputs) if other is each) for each in inputs]
            kept = {str(at): inputs[at] for at in sorted(set(places))}
            tensor_cache.write(file, {**kept, "places": torch.tensor(places), self.sizes: sizes})
        return [Seen(each, size) for each, size in zip(inputs, sizes, strict=True)]

    def _measured(self, products: tuple[Product, ...], reporter: Reporter) -> tuple[list[Tensor], Tensor]:
        """(inputs (tokens, in) of each matrix, sums of squared norms of its results (matrices,)): this rank's part."""
        model, sample, strategy = self.model, self.sample, self.model.strategy
        count, device = len(sample.documents), model.device
        inputs = [torch.zeros(count, each.a.shape[1], device=device) for each in products]
        sizes = torch.zeros(len(products), device=device)
        corpus, place = sample.corpus, strategy.place
        mine = share(np.arange(len(corpus)), corpus.lengths, rank=place.rank, world_size=place.world_size)
        layout = layout_of(model, pad_id=self.pad_id)
        chosen = places = torch.zeros(0, dtype=torch.int64, device=device)

        def note(number: int, given: Tensor, squared: Tensor) -> None:
            inputs[number][places] = given
            sizes[number] += squared.sum()

        was_training = model.network.training
        model.network.eval()
        try:
            with watched(products, lambda: chosen, note):
                for batch in strategy.in_step(layout.batches(corpus, mine), idle()):
                    wanted, found = sample.wanted(batch)
                    chosen = torch.from_numpy(np.flatnonzero(wanted)).to(device)
                    places = torch.from_numpy(found).to(device)
                    model.outputs(batch)
                    reporter.alive()
        finally:
            model.network.train(was_training)
        return inputs, sizes

    def _digest(self, products: tuple[Product, ...], of_model: str) -> str:
        names = {module: name for name, module in self.model.network.named_modules()}
        told = hashlib.sha256(repr((_VERSION, of_model, self.model.autocast)).encode())
        told.update(repr([(names[each.layer], tuple(each.a.shape), tuple(each.b.shape)) for each in products]).encode())
        told.update(self.sample.corpus.tokens.tobytes() + self.sample.places.tobytes())
        return told.hexdigest()[:32]
