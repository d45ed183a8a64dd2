"""KL to the base: a penalty on how far the tuned model's next-token distribution moves from the base model's.

    on replayed rows     beta · mean over their tokens of KL(base ‖ tuned)
    without replay       on the tokens of the training rows, without the right one: it is taken out of both
                         distributions, and the rest is normalised again. So the term pulls at everything that the
                         model is not being taught just now.

The base model's states are computed by the same network with its adapter switched off: there is no second copy of the
model. Of logits there are two chunks at a time, each of at most `CHUNK_BYTES`. KL(base ‖ base) is exactly 0: both sides
are computed by the same operations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Of fp32 logits."""

_NEVER = -1e30
"""Logit of a token that is taken out: its probability is 0, and no difference of two is undefined."""


@dataclass(frozen=True)
class KlToBase:
    weight: float
    """Of a token's divergence, relative to a training token's nats."""
    replayed: bool
    """On replayed rows, else on training rows without the right token."""
    as_base: Callable[[], AbstractContextManager[None]]
    """Inside, the network is the base model."""

    @classmethod
    def on_training_rows(cls, beta: float, as_base: Callable[[], AbstractContextManager[None]]) -> KlToBase:
        return cls(beta, replayed=False, as_base=as_base)

    @classmethod
    def on_replay(
        cls, beta: float, as_base: Callable[[], AbstractContextManager[None]], *, fraction: float, weight: float
    ) -> KlToBase:
        """`fraction` and `weight` of the replay. A step's loss is divided by its weighted tokens, of which replayed
        ones are the fraction: the mean over replayed tokens has weight beta, on average over steps with and without."""
        return cls(beta * weight / fraction, replayed=True, as_base=as_base)

    def divergence(self, hidden: Tensor, base: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """Summed over tokens, in nats. hidden, base: (tokens, dim); head: (vocab, dim), which does not train;
        targets: (tokens,)."""
        rows = _chunk(hidden, head)
        left_out = None if self.replayed else targets
        summed = _Divergence.apply(hidden, base, head, left_out, rows)  # type: ignore[no-untyped-call]
        return cast(Tensor, summed)

    def of_logits(self, logits: Tensor, base: Tensor, targets: Tensor) -> Tensor:
        """The same from logits (tokens, vocab), for heads that are more than one matrix."""
        left_out = None if self.replayed else targets
        tuned, reference = _log_probabilities(logits, left_out), _log_probabilities(base, left_out)
        return (reference.exp() * (reference - tuned)).sum()


@torch.no_grad()
def token_divergences(hidden: Tensor, base: Tensor, head: Tensor) -> Tensor:
    """(tokens,): KL(base ‖ tuned) of each next-token distribution, in nats. hidden, base: (tokens, dim); head:
    (vocab, dim). Of logits there are two chunks at a time."""
    dtype, rows = _compute_dtype(hidden), _chunk(hidden, head)
    weight = head.to(dtype).T
    chunks = (slice(start, start + rows) for start in range(0, len(hidden), rows))
    found = [logit_divergences(*(_mm(states[here].to(dtype), weight) for states in (hidden, base))) for here in chunks]
    return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)


def logit_divergences(logits: Tensor, base: Tensor) -> Tensor:
    """The same from logits (tokens, vocab)."""
    tuned, reference = _log_probabilities(logits, None), _log_probabilities(base, None)
    return (reference.exp() * (reference - tuned)).sum(dim=1)


def _chunk(hidden: Tensor, head: Tensor) -> int:
    """Tokens whose logits are computed at once."""
    return max(16, CHUNK_BYTES.get(hidden.device.type, 32 << 20) // (4 * head.shape[0]))


class _Divergence(torch.autograd.Function):
    """The gradient of a token's logits is tuned − base, of the hidden states that times the head: computed a chunk at a
    time in the forward pass, as the loss does it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, base: Tensor, head: Tensor, left_out: Tensor | None, rows: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden)
        dtype = _compute_dtype(hidden)
        weight = head.to(dtype)
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            gold = None if left_out is None else left_out[here]
            tuned = _log_probabilities(_mm(hidden[here].to(dtype), weight.T), gold)
            reference = _log_probabilities(_mm(base[here].to(dtype), weight.T), gold)
            likely = reference.exp()
            total += (likely * (reference - tuned)).sum()
            grad[here] = _mm(tuned.exp_().sub_(likely).to(dtype), weight).to(grad.dtype)
        ctx.grad = grad
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad, ctx.grad = ctx.grad, None
        return grad.mul_(upstream[0].to(grad.dtype)), None, None, None, None


def _log_probabilities(logits: Tensor, left_out: Tensor | None) -> Tensor:
    """(tokens, vocab) in fp32; `left_out`: (tokens,), a token that each distribution is without."""
    logits = logits.float()
    if left_out is not None:
        logits = logits.scatter(1, left_out[:, None], _NEVER)
    return logits - torch.logsumexp(logits, dim=1, keepdim=True)


def _mm(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
