"""Fused linear cross-entropy: from hidden states to the summed loss without ever holding all logits.

`trained_cross_entropy` scores tokens that are trained, a chunk of rows at a time, and computes the gradient of the
hidden states (and of the head's weight where it is trained) in the same pass: one matrix product fewer than
checkpointed chunks, and memory for one chunk of logits instead of four copies of all.

The result is a sum in nats and not a mean. The caller divides by the number of trained tokens of the whole optimizer
step, over all ranks and micro-batches: only then does accumulation change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Bytes of fp32 logits. On a CPU a chunk should stay near the caches, yet be tall enough for the matrix product."""


def trained_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_rows: int | None = None) -> Tensor:
    """Summed cross-entropy of `hidden @ weight.T` against `targets`, in nats: a scalar in fp32.

    hidden: (tokens, dim), weight: (vocab, dim), targets: (tokens,) int64, every one a token. Waits for no GPU.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return fused_cross_entropy(hidden, weight, targets, chunk_rows=chunk_rows)
    return token_nats(hidden, weight, targets, chunk_rows=chunk_rows).sum()


def fused_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_rows: int | None = None,
    rows: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """The same with gradients. It looks at no value, so it runs on fake tensors too.

    rows: (rows, dim), those of a frozen `weight` that train, which has their values already; places: (vocab,), which of
    them a token has, and their number for a token that has none. Their gradient costs rows / vocab of that of all."""
    chunk = chunk_rows or _rows_in_a_chunk(vocabulary=weight.shape[0], device=weight.device)
    fused = _LinearCrossEntropy.apply(hidden, weight, targets, chunk, rows, places)  # type: ignore[no-untyped-call]
    return cast(Tensor, fused)


@torch.no_grad()
def token_nats(hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_rows: int | None = None) -> Tensor:
    """Cross-entropy of each token, (tokens,) in fp32; every target must be a token. Without gradients."""
    rows = chunk_rows or _rows_in_a_chunk(vocabulary=weight.shape[0], device=weight.device)
    nats = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for here, logits, gold in _chunks(hidden, weight, targets, rows):
        nats[here] = torch.logsumexp(logits, dim=1) - logits.gather(1, gold[:, None]).squeeze(1)
    return nats


def logits_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The same sum from ready-made logits (tokens, vocab): for heads that are more than one matrix."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def _rows_in_a_chunk(*, vocabulary: int, device: torch.device) -> int:
    return max(16, _CHUNK_BYTES.get(device.type, 64 << 20) // (4 * vocabulary))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        rows: Tensor | None,
        places: Tensor | None,
    ) -> Tensor:
        some = None if rows is None or places is None else _SomeRows.of(rows, places)
        nats, ctx.grad_hidden, ctx.grad_weight = _forward(
            hidden, weight, targets, chunk, ctx.needs_input_grad[:2], some
        )
        ctx.grad_rows = None if some is None else some.gradient[:-1]
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Handed over, not kept: the graph is walked once, and both buffers are large.
        grads = ctx.grad_hidden, ctx.grad_weight, ctx.grad_rows
        ctx.grad_hidden = ctx.grad_weight = ctx.grad_rows = None
        hidden, weight, rows = (g if g is None else g.mul_(upstream[0].to(g.dtype)) for g in grads)
        return hidden, weight, None, None, rows, None


class _SomeRows(NamedTuple):
    """Rows of the head that train, and the gradient that they get."""

    places: Tensor
    tokens: Tensor
    """(rows,)"""
    gradient: Tensor
    """(rows + 1, dim) in fp32; the last row takes what belongs to no row."""

    @classmethod
    def of(cls, rows: Tensor, places: Tensor) -> _SomeRows:
        tokens = torch.argsort(places, stable=True)[: len(rows)]
        gradient = torch.zeros(len(rows) + 1, rows.shape[1], dtype=torch.float32, device=rows.device)
        return cls(places, tokens, gradient)

    def add(self, weights: Tensor, states: Tensor, total: Tensor, gold: Tensor) -> None:
        """Of a chunk. weights: (tokens, vocab), exp of the logits, whose sums are `total`."""
        with torch.autocast(states.device.type, enabled=False):
            self.gradient[:-1].addmm_(weights[:, self.tokens].T, states / total[:, None])
        self.gradient.index_add_(0, self.places[gold], states, alpha=-1.0)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: int,
    wanted: tuple[bool, bool],
    some: _SomeRows | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(nats, gradient of hidden or None, gradient of weight or None).

    With e = exp(logits - max) and s = sum(e), the gradient of the logits is e/s - onehot. The division and the onehot
    are moved to the far sides of the matrix products, where they cost (rows, dim) and not (rows, vocab):
    d hidden = (e @ W)/s - W[target] and d W = e.T @ (hidden/s) - scatter(hidden).
    """
    nats = torch.zeros((), dtype=torch.float32, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    dtype = _compute_dtype(hidden)
    head = weight.to(dtype)
    for here, logits, gold in _chunks(hidden, weight, targets, rows):
        right = logits.gather(1, gold[:, None]).squeeze(1)
        highest = logits.amax(dim=1)
        weights = logits.sub_(highest[:, None]).exp_()
        total = weights.sum(dim=1)
        nats += (total.log() + highest - right).sum()
        if grad_hidden is not None:
            grad_hidden[here] = _mm(weights.to(dtype), head).float().div_(total[:, None]).sub_(head[gold])
        if grad_weight is not None:
            states = hidden[here].float()
            with torch.autocast(hidden.device.type, enabled=False):
                grad_weight.addmm_(weights.T, states / total[:, None])
            grad_weight.index_add_(0, gold, states, alpha=-1.0)
        if some is not None:
            some.add(weights, hidden[here].float(), total, gold)
    return nats, grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)


def _chunks(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(where, logits in fp32, targets) a chunk at a time. All chunks share one buffer, which the caller may spoil:
    on a CPU the page faults of fresh memory cost a tenth of the matrix product."""
    dtype = _compute_dtype(hidden)
    head = weight.to(dtype).T
    buffer = torch.empty(min(rows, len(hidden)), weight.shape[0], dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), rows):
        here = slice(start, start + rows)
        states, gold = hidden[here].to(dtype), targets[here]
        logits = buffer[: len(gold)]
        if dtype == torch.float32:
            torch.mm(states, head, out=logits)
        else:
            logits.copy_(_mm(states, head))
        yield here, logits, gold


def _mm(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
