"""What spec.diagnostics asks of a run: the states of each layer, of the base model and of the tuned one.

The base model is measured at the start of each attempt, while the network is what it was loaded as: so its states need
not outlive the attempt, no second copy of the model is needed, and methods that change the base itself can be compared
too. Each rank runs its share of the documents, keeps their states in memory until the end, and gathers one layer at a
time: at most 17 layers of 4,096 tokens (1,100 where a state has more than 1,024 numbers) of each data set, and half as
many of each concept probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.labelled import Labelled, labelled
from finetune_trainer.data.token_sample import TokenSample
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.statistics.similarity import FEWEST
from finetune_trainer.transfer.diagnostics.concepts import Concept, concept
from finetune_trainer.transfer.diagnostics.inside import Layerwise
from finetune_trainer.transfer.diagnostics.probes import States
from finetune_trainer.transfer.diagnostics.similarity import Similarity, held_out, lacking, similarity
from finetune_trainer.transfer.evaluate import Layout

from .setup import Setup
from .token_states import PartOfStates, gathered, layout_of, part_of_states

MOST_LAYERS = 16
"""Blocks; the embeddings are one more."""
WIDE = 1024
"""Numbers of a state from which on a decomposition of each layer takes seconds."""

Parts = tuple[PartOfStates, ...]


def compared_layers(blocks: int) -> tuple[int, ...]:
    """The embeddings, the last block, and evenly spread blocks between."""
    step = -(-blocks // MOST_LAYERS)
    return tuple(sorted({*range(0, blocks + 1, step), blocks}))


def compared_tokens(dim: int) -> int:
    return 4 * FEWEST if dim <= WIDE else FEWEST + 76


def fewer(dim: int) -> int:
    """By which the spans of a concept probe are divided."""
    return 1 if dim <= WIDE else 2


@dataclass
class Diagnosing:
    """Of one run. Every method is collective, and does nothing where nothing is asked for."""

    setup: Setup
    layers: tuple[int, ...] = ()
    samples: Mapping[str, TokenSample] = field(default_factory=dict)
    """By data set."""
    probes: tuple[Labelled, ...] = ()
    notes: tuple[str, ...] = ()
    _base: Parts = ()
    """Of the samples, then of the probes."""

    @classmethod
    def of(cls, setup: Setup, corpora: Mapping[str, Corpus]) -> Diagnosing:
        asked, seed = setup.spec.diagnostics, setup.spec.training.seed
        if not asked.asked or setup.plan.rung is not None:
            return cls(setup)
        dim = setup.trainer.model.hidden_size
        drawn = {
            name: TokenSample.of(each, tokens=compared_tokens(dim), seed=seed)
            for name, each in (held_out(corpora) if asked.similarity else {}).items()
        }
        short = {name: lacking(len(each.documents), len(each.corpus)) for name, each in drawn.items()}
        tokenizer = Tokenizer.load(setup.local.path)
        return cls(
            setup,
            compared_layers(decoder_layers(setup.trainer.model.network).count),
            {name: each for name, each in drawn.items() if not short[name]},
            tuple(labelled(probe, tokenizer, seed=seed, fewer=fewer(dim)) for probe in asked.probes),
            tuple(f"{name} is not compared layer by layer: it has {why}" for name, why in short.items() if why),
        )

    @property
    def _any(self) -> bool:
        return bool(self.samples or self.probes or self.notes)

    def measure_base(self) -> None:
        """With the untouched model. Stopped when a rank was asked to stop."""
        if self._any:
            self.setup.trainer.reporter.phase("evaluating", "measuring the base model's states, layer by layer")
        self._base = self._measured()

    def compared(self) -> Layerwise | None:
        """With the model as it is published; None where nothing is asked for, and on ranks other than 0."""
        if not self._any:
            return None
        trainer = self.setup.trainer
        trainer.reporter.phase("evaluating", "measuring the tuned model's states, layer by layer")
        pairs = list(zip(self._base, self._measured(), strict=True))
        found = [self._similarity(name, *pair) for name, pair in zip(self.samples, pairs, strict=False)]
        known = [self._concepts(probe, *pair) for probe, pair in zip(self.probes, pairs[len(found) :], strict=True)]
        if not trainer.strategy.place.first:
            return None
        return Layerwise(
            blocks=decoder_layers(trainer.model.network).count,
            similarity=tuple(each for each in found if each is not None),
            concepts=tuple(each for each in known if each is not None),
            notes=self.notes,
        )

    def _measured(self) -> Parts:
        trainer = self.setup.trainer
        return tuple(
            part_of_states(
                trainer.model,
                sample,
                self.layers,
                layout=self._layout,
                strategy=trainer.strategy,
                going_on=trainer.going_on,
            )
            for sample in (*self.samples.values(), *(probe.sample for probe in self.probes))
        )

    @property
    def _layout(self) -> Layout:
        return layout_of(self.setup.trainer.model, pad_id=self.setup.trainer.layout.pad_id)

    def _similarity(self, name: str, before: PartOfStates, after: PartOfStates) -> Similarity | None:
        """On rank 0: it computes while others wait with their part of the next layer."""
        base, tuned = self._layers(before), self._layers(after)
        if not self.setup.trainer.strategy.place.first:
            for _ in zip(base, tuned, strict=True):
                continue
            return None
        return similarity(
            name,
            base,
            tuned,
            self.samples[name].documents,
            layers=self.layers,
            seed=self.setup.spec.training.seed,
            canonical=self.setup.trainer.model.hidden_size <= WIDE,
        )

    def _concepts(self, probe: Labelled, before: PartOfStates, after: PartOfStates) -> tuple[Concept, Concept] | None:
        first, seed = self.setup.trainer.strategy.place.first, self.setup.spec.training.seed
        found = []
        for part in (before, after):
            states = self._layers(part)
            if first:
                found.append(concept(probe, states, layers=self.layers, seed=seed))
            else:
                for _ in states:
                    continue
        return (found[0], found[1]) if first else None

    def _layers(self, part: PartOfStates) -> Iterator[States]:
        trainer = self.setup.trainer
        return gathered(part, trainer.strategy, alive=trainer.reporter.alive)
