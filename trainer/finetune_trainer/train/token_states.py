"""States of chosen tokens in every layer, by one process or by a gang.

PartOfStates  what one rank has computed: its share of the documents
gathered      the states of all tokens, one layer after another, so that no rank ever holds all layers of all tokens
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_trainer.data.order import share
from finetune_trainer.data.pack import idle
from finetune_trainer.data.token_sample import TOKENS, TokenSample
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.transfer.evaluate import Layout, Stopped

from .model import LanguageModel

AT_ONCE = 1024
"""Tokens of a micro-batch."""
States = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PartOfStates:
    """Those of this rank's documents."""

    tokens: int
    """Of the whole sample."""
    places: Numbers
    """(own,): where the tokens are in the sample."""
    states: States
    """(layers, own, dim)"""


def part_of_states(
    model: LanguageModel,
    sample: TokenSample,
    layers: Sequence[int],
    *,
    layout: Layout,
    strategy: Strategy,
    going_on: Callable[[], bool],
) -> PartOfStates:
    """Collective. Stopped on all ranks when one was asked to stop. Where weights are sharded, `layers` have to end with
    the last block: every rank runs the whole body."""
    place, corpus = strategy.place, sample.corpus
    mine = share(np.arange(len(corpus)), corpus.lengths, rank=place.rank, world_size=place.world_size)
    own = np.flatnonzero(np.isin(sample.documents, mine))
    states = np.zeros((len(layers), len(own), model.hidden_size), np.float32)
    was_training = model.network.training
    model.network.eval()
    try:
        for batch in strategy.in_step(layout.batches(corpus, mine), idle()):
            if strategy.agreed(not going_on()):
                raise Stopped
            wanted, places = sample.wanted(batch)
            states[:, np.searchsorted(own, places)] = model.layer_states(batch, layers, wanted)
    finally:
        model.network.train(was_training)
    return PartOfStates(len(sample.documents), own, states)


def gathered(part: PartOfStates, strategy: Strategy, *, alive: Callable[[], None]) -> Iterator[States]:
    """Collective: (tokens, dim) of each layer, on every rank. What another rank has is 0 here, so the sum is exact."""
    for each in part.states:
        whole = torch.zeros(part.tokens, each.shape[1])
        whole[torch.from_numpy(part.places)] = torch.from_numpy(each)
        strategy.sum_gradients([whole.view(-1)])
        alive()
        yield whole.numpy()


def layout_of(model: LanguageModel, *, pad_id: int) -> Layout:
    """Short windows: an analysis needs many documents and no long ones."""
    return Layout(max_tokens=AT_ONCE, sequence_length=TOKENS, packing=model.capabilities.isolates, pad_id=pad_id)
