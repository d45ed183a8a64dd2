"""What a method leaves to the data, decided before the first step: how many layers `partial` trains.

The decision is a function of model, data and seed. It is measured once, by every rank on the same rows, of which rank 0
decides, and is stored next to the checkpoints: an attempt on other hardware, which may round otherwise, continues
with the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from finetune_api.methods import Method
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.order import step_rows
from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.methods.partial import last_layers, relative_gradients
from finetune_trainer.parallel.base import Gang
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.transfer.evaluate import Layout

from .model import LanguageModel

_BATCHES = 8
_ROWS = 4
"""Rows of each batch: enough for a norm, and quick."""

_NOTE = "partial-layers"


def resolve_layers(
    method: Method,
    model: LanguageModel,
    train: Corpus,
    *,
    layout: Layout,
    seed: int,
    batch_size: int,
    gang: Gang,
    store: CheckpointStore | None,
    alive: Callable[[], None],
) -> Method:
    """`method` with numbers in place of auto. Collective; `store` is rank 0's."""
    layers = gang.broadcast_json(store.noted(_NOTE) if store is not None else None)
    if layers is None:
        found = layer_gradients(model, train, layout=layout, seed=seed, batch_size=batch_size, alive=alive)
        layers = gang.broadcast_json(last_layers(found))
        if store is not None:
            store.note(_NOTE, layers)
    return method.settled(layers)


def layer_gradients(
    model: LanguageModel, train: Corpus, *, layout: Layout, seed: int, batch_size: int, alive: Callable[[], None]
) -> list[float]:
    """(blocks,): how strongly each would move in the first steps, see `relative_gradients`. Afterwards no parameter
    requires gradients."""
    losses = _losses(model, train, layout=layout, seed=seed, batch_size=batch_size, alive=alive)
    return relative_gradients(model.network, losses)


def _losses(
    model: LanguageModel, train: Corpus, *, layout: Layout, seed: int, batch_size: int, alive: Callable[[], None]
) -> Iterator[Callable[[], Tensor]]:
    """Nats for each trained token, of the first micro-batch of each of the first steps."""
    for step in range(_BATCHES):
        rows = step_rows(len(train), batch_size=batch_size, seed=seed, step=step)[:_ROWS]
        batch = layout.batches(train, rows)[0]
        if batch.target_count:
            yield partial(_mean_nats, model, batch)
        alive()


def _mean_nats(model: LanguageModel, batch: MicroBatch) -> Tensor:
    return model.nats(batch) / batch.target_count
