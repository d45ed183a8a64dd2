"""How fast a kernel is here, compared with the reference: published figures are about other shapes and other GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .attention import Kernel, attention, starts
from .correctness import Heads, pairs
from .loss import Loss

MARGIN = 0.95
"""A kernel has to win by a twentieth: less is noise."""

_TURNS = 3
_MOST_TOKENS = 8192

Clock = Callable[[Callable[[], object]], float]
"""Seconds that a piece of work takes."""


def clock(device: torch.device) -> Clock:
    """The fastest of a few turns, after one that may compile."""

    def seconds(work: Callable[[], object]) -> float:
        work()
        return min(_once(work, device) for _ in range(_TURNS))

    return seconds


def attention_ratio(
    kernel: Kernel, heads: Heads, positions: NDArray[np.int64], *, dtype: torch.dtype, device: torch.device,
    seconds: Clock,
) -> float:  # fmt: skip
    """Time of the kernel for sdpa's, forwards and backwards, on rows with these positions (rows, length)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    positions = positions[: max(1, _MOST_TOKENS // positions.shape[1]), :_MOST_TOKENS]
    rows, length = positions.shape
    module = cast(Any, SimpleNamespace(num_key_value_groups=heads.queries // heads.keys, is_causal=True))
    given = [
        torch.randn(rows, count, length, heads.size, device=device, dtype=dtype, requires_grad=True)
        for count in (heads.queries, heads.keys, heads.keys)
    ]
    bounds = torch.from_numpy(starts(positions)).to(device)
    packed = bool((positions[:, 1:] == 0).any())
    mask = pairs(torch.from_numpy(positions).to(device), None) if packed else None
    scale = heads.size**-0.5

    def both(forward: Callable[..., tuple[Tensor, None]], seen: Tensor | None) -> float:
        def work() -> None:
            result = forward(cast(nn.Module, module), *given, seen, scaling=scale)[0]
            torch.autograd.grad(result.sum(), given)

        return seconds(work)

    return both(attention(kernel), bounds) / both(sdpa_attention_forward, mask)


def loss_ratio(
    kernel: Loss, reference: Loss, *, tokens: int, dim: int, vocabulary: int, trains_head: bool, dtype: torch.dtype,
    stored: torch.dtype, device: torch.device, seconds: Clock,
) -> float:  # fmt: skip
    """Time of the kernel for the reference's, with gradients, of so many trained tokens."""
    tokens = max(1, min(tokens, _MOST_TOKENS))
    hidden = torch.randn(tokens, dim, device=device, dtype=stored, requires_grad=True)
    weight = torch.randn(vocabulary, dim, device=device, dtype=stored).requires_grad_(trains_head)
    targets = torch.randint(vocabulary, (tokens,), device=device)

    def both(loss: Loss) -> float:
        def work() -> None:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != stored):
                nats = loss(hidden, weight, targets)
            torch.autograd.grad(nats, [hidden, weight] if trains_head else [hidden])

        return seconds(work)

    return both(kernel) / both(reference)


def _once(work: Callable[[], object], device: torch.device) -> float:
    _settled(device)
    started = time.perf_counter()
    work()
    _settled(device)
    return time.perf_counter() - started


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
