"""What spec.diagnostics asks of a run: the states of each layer, of the base model and of the tuned one.

The base model is measured at the start of each attempt, while the network is what it was loaded as: so its states need
not outlive the attempt, no second copy of the model is needed, and methods that change the base itself can be compared
too. Each rank runs its share of the documents, keeps their states in memory until the end, and gathers one layer at a
time: at most 17 layers of 4,096 tokens (1,100 where a state has more than 1,024 numbers), of each data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.token_sample import TokenSample
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.statistics.similarity import FEWEST
from finetune_trainer.transfer.diagnostics.similarity import Layerwise, Similarity, held_out, lacking, similarity
from finetune_trainer.transfer.evaluate import Layout

from .setup import Setup
from .token_states import PartOfStates, gathered, layout_of, part_of_states

MOST_LAYERS = 16
"""Blocks; the embeddings are one more."""
WIDE = 1024
"""Numbers of a state from which on a decomposition of each layer takes seconds."""


def compared_layers(blocks: int) -> tuple[int, ...]:
    """The embeddings, the last block, and evenly spread blocks between."""
    step = -(-blocks // MOST_LAYERS)
    return tuple(sorted({*range(0, blocks + 1, step), blocks}))


def compared_tokens(dim: int) -> int:
    return 4 * FEWEST if dim <= WIDE else FEWEST + 76


@dataclass
class Diagnosing:
    """Of one run. Every method is collective, and does nothing where nothing is asked for."""

    setup: Setup
    layers: tuple[int, ...] = ()
    samples: Mapping[str, TokenSample] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _base: dict[str, PartOfStates] = field(default_factory=dict)

    @classmethod
    def of(cls, setup: Setup, corpora: Mapping[str, Corpus]) -> Diagnosing:
        if setup.spec.diagnostics.similarity is None or setup.plan.rung is not None:
            return cls(setup)
        model = setup.trainer.model
        tokens, seed = compared_tokens(model.hidden_size), setup.spec.training.seed
        drawn = {name: TokenSample.of(each, tokens=tokens, seed=seed) for name, each in held_out(corpora).items()}
        short = {name: lacking(len(each.documents), len(each.corpus)) for name, each in drawn.items()}
        return cls(
            setup,
            compared_layers(decoder_layers(model.network).count),
            {name: each for name, each in drawn.items() if not short[name]},
            tuple(f"{name} is not compared layer by layer: it has {why}" for name, why in short.items() if why),
        )

    def measure_base(self) -> None:
        """With the untouched model. Stopped when a rank was asked to stop."""
        if self.samples:
            self.setup.trainer.reporter.phase("evaluating", "measuring the base model's states, layer by layer")
        self._base = self._measured()

    def compared(self) -> Layerwise | None:
        """With the model as it is published; None where nothing is asked for, and on ranks other than 0."""
        if not self.samples and not self.notes:
            return None
        trainer = self.setup.trainer
        trainer.reporter.phase("evaluating", "measuring the tuned model's states, layer by layer")
        tuned = self._measured()
        found = [each for name in self.samples if (each := self._similarity(name, tuned[name])) is not None]
        if not trainer.strategy.place.first:
            return None
        blocks = decoder_layers(trainer.model.network).count
        return Layerwise(blocks=blocks, similarity=tuple(found), notes=self.notes)

    def _measured(self) -> dict[str, PartOfStates]:
        trainer = self.setup.trainer
        return {
            name: part_of_states(
                trainer.model,
                sample,
                self.layers,
                layout=self._layout,
                strategy=trainer.strategy,
                going_on=trainer.going_on,
            )
            for name, sample in self.samples.items()
        }

    @property
    def _layout(self) -> Layout:
        return layout_of(self.setup.trainer.model, pad_id=self.setup.data.pad_id)

    def _similarity(self, name: str, after: PartOfStates) -> Similarity | None:
        """On rank 0: it computes while others wait with their part of the next layer."""
        trainer = self.setup.trainer
        before, tuned = (
            gathered(part, trainer.strategy, alive=trainer.reporter.alive) for part in (self._base[name], after)
        )
        if not trainer.strategy.place.first:
            for _ in zip(before, tuned, strict=True):
                continue
            return None
        return similarity(
            name,
            before,
            tuned,
            self.samples[name].documents,
            layers=self.layers,
            seed=self.setup.spec.training.seed,
            canonical=trainer.model.hidden_size <= WIDE,
        )
