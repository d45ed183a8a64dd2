"""A frozen network's view of a text, as numbers for a classifier: of one layer, the mean over the tokens without the
first (whose states are huge and the same for any text), and the last token, which has seen everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune_trainer.data.pack import PADDING, MicroBatch
from finetune_trainer.decoder_blocks import Layers, body_of, decoder_layers


def default_layers(count: int) -> tuple[int, ...]:
    """Six of `count` blocks. The best are rarely the last: of SmolLM2's 30 on sentiment, 19 to 22 in the domain and 15
    outside of it."""
    return tuple(sorted({max(1, round(count * share / 8)) for share in (2, 4, 5, 6, 7, 8)}))


@torch.no_grad()
def features(network: nn.Module, batch: MicroBatch, layers: Sequence[int]) -> NDArray[np.float32]:
    """(documents of the batch, layers, 2 · dim): mean, then last. Layer 0 is the embeddings, n the n-th block's output.

    A document of one token is its own mean."""
    device = next(network.parameters()).device
    tokens, positions = (torch.from_numpy(array).to(device) for array in (batch.tokens, batch.positions))
    with _tapped(network, decoder_layers(network), layers) as seen, suppress(_Enough):
        body_of(network)(input_ids=tokens, position_ids=positions, use_cache=False)
    segments, places = batch.segments.reshape(-1), batch.positions.reshape(-1)
    count = len(batch.documents)
    lengths = np.bincount(segments[segments != PADDING], minlength=count)
    last = np.zeros(count, np.int64)
    np.maximum.at(last, segments[segments != PADDING], np.flatnonzero(segments != PADDING))
    averaged = np.flatnonzero((segments != PADDING) & ((places > 0) | (lengths[segments] == 1)))
    owner = torch.from_numpy(segments[averaged]).to(device)
    chosen, ends = torch.from_numpy(averaged).to(device), torch.from_numpy(last).to(device)
    sizes = torch.from_numpy(np.maximum(lengths - 1, 1)).to(device, torch.float32)
    out = np.zeros((count, len(layers), 2 * _width(seen[layers[0]])), np.float32)
    for index, layer in enumerate(layers):
        states = _one_stream(network, seen[layer]).reshape(-1, seen[layer].shape[-1]).float()
        mean = torch.zeros(count, states.shape[1], device=device).index_add_(0, owner, states[chosen])
        out[:, index] = torch.cat([mean / sizes[:, None], states[ends]], dim=1).cpu().numpy()
    return out


@torch.no_grad()
def token_states(
    network: nn.Module, batch: MicroBatch, layers: Sequence[int], wanted: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(layers, wanted tokens, dim), line by line; wanted: (rows, length)."""
    device = next(network.parameters()).device
    tokens, positions = (torch.from_numpy(array).to(device) for array in (batch.tokens, batch.positions))
    with _tapped(network, decoder_layers(network), layers) as seen, suppress(_Enough):
        body_of(network)(input_ids=tokens, position_ids=positions, use_cache=False)
    chosen = torch.from_numpy(np.flatnonzero(wanted)).to(device)
    states = [_one_stream(network, seen[layer]).reshape(-1, _width(seen[layer]))[chosen] for layer in layers]
    return torch.stack(states).float().cpu().numpy()


def _one_stream(network: nn.Module, states: Tensor) -> Tensor:
    """(rows, length, dim); of blocks that carry several states of each token (Gemma 3n: (streams, rows, length, dim))
    the one that they compute with."""
    if states.ndim == 3:
        return states
    return states[int(getattr(cast(Any, network).config.get_text_config(), "altup_active_idx", 0))]


def _width(states: Tensor) -> int:
    return int(states.shape[-1])


class _Enough(Exception):
    """No wanted layer is higher: no further one needs to run. Where the last one is wanted the body ends by itself, as
    bodies with sharded weights have to."""


@contextmanager
def _tapped(network: nn.Module, blocks: Layers, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Keeps what comes out of the wanted blocks while the network runs, and nothing of the others."""
    seen: dict[int, Tensor] = {}
    handles = []

    def keep(layer: int, output: Any) -> None:
        seen[layer] = output[0] if isinstance(output, tuple) else output
        if layer == max(layers) < blocks.count:
            raise _Enough

    for layer in layers:
        block = network.get_submodule(f"{blocks.prefix}.{max(0, layer - 1)}")
        if layer == 0:
            handles.append(
                block.register_forward_pre_hook(lambda _, args, kw: keep(0, _input(args, kw)), with_kwargs=True)
            )
        else:
            handles.append(block.register_forward_hook(lambda _, __, output, layer=layer: keep(layer, output)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _input(args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    return cast(Tensor, args[0] if args else given["hidden_states"])
