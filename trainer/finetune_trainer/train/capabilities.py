"""What one architecture can do, found out in float32: tolerances that allow for bfloat16 would hide what is looked for.

probe       eight tokens through the network, in other arrangements: what stays the same
fused       whether logits are hidden states times the head's weight and nothing else: the body's states are replaced
            by known ones and the head by a small matrix, so that scales, caps and projections after it show
narrowest   how far the narrowest layer sees, from the config: eight tokens reach no window
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune_trainer.attention_windows import narrowest
from finetune_trainer.decoder_blocks import body_of, decoder_of
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.single import Single

from .full_precision import FullPrecision

_SAME = 1e-4
"""Of a token's states, by their norms. Rounding in float32 leaves about a hundredth of it, after eighty layers too."""

_ROWS_OF_HEAD = 16


@dataclass(frozen=True)
class Capabilities:
    """What holds for one architecture."""

    fused_head: bool
    """Logits are hidden states times the head's weight, and nothing else."""
    isolates: bool
    """Documents in one row do not see each other when positions start again at 0."""
    shares_prompts: bool
    """A custom mask is honoured, so several continuations may share one prompt."""
    shared_within: int | None = None
    """Tokens of a prompt and its longest continuation up to which one mask says what every layer sees: the width of the
    narrowest window. None: any number."""

    def common(self, other: Capabilities) -> Capabilities:
        """What holds for both."""
        widths = [width for width in (self.shared_within, other.shared_within) if width is not None]
        return Capabilities(
            self.fused_head and other.fused_head,
            self.isolates and other.isolates,
            self.shares_prompts and other.shares_prompts,
            min(widths, default=None),
        )


def hidden_states(network: nn.Module, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
    """(rows, length, dim), after the last norm.

    Without a mask and without a cache, transformers reads from the positions where documents begin, and builds the mask
    itself; with either of the two it does not, and documents leak into each other without a word.
    """
    answer = body_of(network)(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False)
    return cast(Tensor, answer.last_hidden_state)


@torch.no_grad()
def probe(
    network: nn.Module, device: torch.device, *, strategy: Strategy | None = None, in_front: int = 0
) -> Capabilities:
    """Collective. `in_front`: learned keys and values before every row, which a window counts too."""
    was_training = network.training
    network.eval()
    strategy = strategy or Single()
    try:
        with FullPrecision():
            found = strategy.inside(network, lambda: _probe(network, device))
    finally:
        network.train(was_training)
    # What one rank cannot do none does: layouts differ otherwise.
    known = (found.fused_head, found.isolates, found.shares_prompts)
    fused, isolates, shares = (strategy.sum_counters([float(not able) for able in known])[i] == 0 for i in range(3))
    width = narrowest(cast(Any, network).config.get_text_config())
    return Capabilities(fused, isolates, shares, None if width is None else max(0, width - in_front))


def _probe(network: nn.Module, device: torch.device) -> Capabilities:
    vocabulary = int(cast(Any, network).get_input_embeddings().weight.shape[0])
    tokens = (torch.arange(8, device=device) * 7919 + 13)[None] % vocabulary
    counted = torch.arange(8, device=device)[None]
    first = _states(network, tokens[:, :5], counted[:, :5])
    other = _states(network, tokens[:, 5:], counted[:, :3])
    branch = _states(network, torch.cat([tokens[:, :3], tokens[:, 5:]], 1), counted[:, :6])

    packed = _states(network, tokens, torch.cat([counted[:, :5], counted[:, :3]], 1))
    isolates = _same(packed, first, other)

    # One prompt of three tokens, continued by two and, instead, by three others.
    seen = torch.ones(8, 8, dtype=torch.bool, device=device).tril()
    seen[5:, 3:5] = False
    tree = _states(network, tokens, torch.cat([counted[:, :5], counted[:, 3:6]], 1), seen[None, None])
    shares = _same(tree, first, None if branch is None else branch[:, 3:])
    return Capabilities(fused_head=_is_fused(network, tokens, counted), isolates=isolates, shares_prompts=shares)


def _states(network: nn.Module, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor | None:
    try:
        return hidden_states(network, tokens, positions, mask)
    except (ValueError, TypeError, RuntimeError):  # a mask or positions that this architecture does not take
        return None


def _same(whole: Tensor | None, *parts: Tensor | None) -> bool:
    """Whether the states `whole` are those of `parts`, one after another; each (1, tokens, dim)."""
    known = [part for part in parts if part is not None]
    if whole is None or len(known) < len(parts):
        return False
    right = torch.cat(known, 1)
    if whole.shape != right.shape:
        return False
    off, size = torch.linalg.vector_norm(whole - right, dim=-1), torch.linalg.vector_norm(right, dim=-1)
    return bool((off <= _SAME * size).all())


def _is_fused(network: nn.Module, tokens: Tensor, positions: Tensor) -> bool:
    """Whether logits are the product of states and head. A bias of the head is one thing more, whatever its values:
    they may train."""
    head = cast(Any, network).get_output_embeddings()
    name = next((name for name, module in network.named_modules() if module is head), None)
    if name is None or getattr(head, "bias", None) is not None:
        return False
    drawn = torch.Generator().manual_seed(0)
    known: list[Tensor] = []
    small: list[nn.Linear] = []

    def replaced(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        shape = output.last_hidden_state.shape
        states = torch.randn(shape, generator=drawn).to(tokens.device)
        known.append(states)
        with torch.no_grad():
            small[0].weight.copy_(torch.randn(_ROWS_OF_HEAD, shape[-1], generator=drawn))
        output.last_hidden_state = states
        return output

    width = int(cast(Any, network).config.get_text_config().hidden_size)
    small.append(nn.Linear(width, _ROWS_OF_HEAD, bias=False, device=tokens.device))
    hook = decoder_of(network).register_forward_hook(replaced)
    try:
        with _instead(network, name, small[0]):
            logits = cast(Any, network)(input_ids=tokens, position_ids=positions, use_cache=False).logits
    except (AttributeError, ValueError, TypeError, RuntimeError):  # another way from states to logits
        return False
    finally:
        hook.remove()
    return bool(known) and _same(logits, known[0] @ small[0].weight.T)


@contextmanager
def _instead(network: nn.Module, name: str, other: nn.Module) -> Iterator[None]:
    """`other` in the place of a part of `network`."""
    before = network.get_submodule(name)
    parent, _, child = name.rpartition(".")
    holder = network.get_submodule(parent)
    holder._modules[child] = other
    try:
        yield
    finally:
        holder._modules[child] = before
