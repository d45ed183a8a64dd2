"""The frozen layers below the lowest one that trains, as a part of the network that can be run alone, and left out.

Nothing is known of the architecture but its list of decoder blocks. So whether the parts make the whole is tried out:
where they do not, to the bit (a block that hands on more than hidden states, dropout in frozen layers), there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune_trainer.decoder_blocks import body_of, decoder_layers

_PROBED = 8
"""Tokens, in two documents of five and three."""


class _Enough(Exception):
    """What is wanted is known: no further layer needs to run."""


@dataclass(frozen=True)
class FrozenLayers:
    network: nn.Module
    blocks: tuple[nn.Module, ...]
    """From the first to the last frozen one; at least one."""
    tuples: bool
    """Whether a block answers with a tuple of its hidden states alone."""

    @torch.no_grad()
    def states(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """(rows, length) to (rows, length, dim), by these layers alone. mask: as the network takes it."""
        return _hidden(_output(self.network, self.blocks[-1], tokens, positions, mask))

    @contextmanager
    def left_out(self, states: Tensor) -> Iterator[None]:
        """Inside, the network continues from `states` (rows, length, dim), whatever its tokens are."""
        answer = (states,) if self.tuples else states

        def known(*_: Any, **__: Any) -> Any:
            return answer

        # In place of the forward and of the layer itself: blocks stay where they are, for networks that count them.
        before = [block.__dict__.get("forward") for block in self.blocks]
        for block in self.blocks:
            block.forward = known
        try:
            yield
        finally:
            for block, forward in zip(self.blocks, before, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward


def find_frozen_layers(network: nn.Module, count: int, device: torch.device) -> FrozenLayers | None:
    """The first `count` blocks; None where there are none, or where they cannot be separated from the rest."""
    if count <= 0:
        return None
    layers = decoder_layers(network)
    blocks = tuple(cast(nn.ModuleList, network.get_submodule(layers.prefix)))[:count]
    vocabulary = int(cast(Any, network).get_input_embeddings().weight.shape[0])
    tokens = (torch.arange(_PROBED, device=device) * 7919 + 13)[None] % vocabulary
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]], device=device)
    was_training, drawn = network.training, torch.get_rng_state()
    network.train()
    try:
        return _tried(network, blocks, tokens, positions)
    finally:
        network.train(was_training)
        torch.set_rng_state(drawn)


@torch.no_grad()
def _tried(network: nn.Module, blocks: tuple[nn.Module, ...], tokens: Tensor, positions: Tensor) -> FrozenLayers | None:
    torch.manual_seed(1)
    output = _output(network, blocks[-1], tokens, positions)
    tuples = isinstance(output, tuple)
    if tuples and len(output) > 1:
        return None
    below = FrozenLayers(network, blocks, tuples)
    states = _hidden(output)
    if states.ndim != 3:  # several states of each token
        return None
    torch.manual_seed(2)
    if not torch.equal(states, below.states(tokens, positions)):
        return None
    whole = _last(network, tokens, positions)
    with below.left_out(states):
        rest = _last(network, tokens, positions)
    return below if torch.equal(whole, rest) else None


def _last(network: nn.Module, tokens: Tensor, positions: Tensor) -> Tensor:
    torch.manual_seed(3)
    body = body_of(network)
    return cast(Tensor, body(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state)


def _output(network: nn.Module, block: nn.Module, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Any:
    """Of `block`, when the network reads these tokens; no block after it runs."""
    found: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output)
        raise _Enough

    handle = block.register_forward_hook(keep)
    try:
        body_of(network)(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0]


def _hidden(output: Any) -> Tensor:
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)
