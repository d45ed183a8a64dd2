"""A kernel against the reference, on the device that it would run on: forwards and backwards, on a small problem.

The answer is computed in float32 from what the kernel is given, after rounding: a tolerance is about the kernel alone.
Two numbers are held: the largest deviation, relative to the largest value, and how much of the answer there is too much
or too little. Rounding makes the first one large and leaves the second one small, for it has no direction. A kernel
that leaks, forgets or scales moves the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_trainer.data.pack import IGNORED

from .attention import Kernel, attention, starts
from .loss import Loss


@dataclass(frozen=True)
class Tolerance:
    largest: float
    scale: float


TOLERANCES = {torch.float32: Tolerance(1e-4, 1e-5), torch.bfloat16: Tolerance(2e-2, 1e-3)}
"""Right kernels in plain torch are off by 7e-7 and 1e-7 on a CPU, in bfloat16 by 5e-3 and 1e-4. Products that are
rounded to TF32 without being asked for are off by 1e-3, and refused in float32."""


@dataclass(frozen=True)
class Heads:
    queries: int
    keys: int
    size: int

    @classmethod
    def of(cls, network: nn.Module) -> Heads:
        config = cast(Any, network).config.get_text_config()
        queries = int(config.num_attention_heads)
        keys = int(getattr(config, "num_key_value_heads", None) or queries)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // queries)
        return cls(queries, keys, size)


_DOCUMENTS = ((131, 1, 168), (37, 200, 63))
"""Tokens, in two rows: longer and shorter than a block of any kernel, and one alone."""

_WINDOW = 50


def attention_fault(kernel: Kernel, heads: Heads, *, dtype: torch.dtype, device: torch.device) -> str:
    """In a few words what is wrong with it; empty where nothing is. Nothing is raised."""
    return guarded(lambda: _attention_fault(kernel, heads, dtype, device))


def loss_fault(
    kernel: Loss, *, dim: int, vocabulary: int, trains_head: bool, dtype: torch.dtype, stored: torch.dtype,
    device: torch.device,
) -> str:  # fmt: skip
    """The same of a loss. `dtype`: of products, `stored`: of what it is given, which autocast may have to round."""
    return guarded(lambda: _loss_fault(kernel, dim, vocabulary, trains_head, dtype, stored, device))


def guarded(fault: Callable[[], str]) -> str:
    # Whatever somebody else's kernel may raise, from a missing library to a failed build: the run goes on without it.
    try:
        return fault()
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"it failed: {type(error).__name__}: {first}"[:200]


def _attention_fault(kernel: Kernel, heads: Heads, dtype: torch.dtype, device: torch.device) -> str:
    rows, length = len(_DOCUMENTS), sum(_DOCUMENTS[0])
    positions = np.array([np.concatenate([np.arange(n) for n in row]) for row in _DOCUMENTS])
    random = torch.Generator().manual_seed(1)

    def drawn(count: int) -> Tensor:
        return torch.randn(rows, count, length, heads.size, generator=random).to(device, dtype)

    given = [drawn(heads.queries), drawn(heads.keys), drawn(heads.keys)]
    upstream = drawn(heads.queries).transpose(1, 2)
    module = SimpleNamespace(num_key_value_groups=heads.queries // heads.keys, is_causal=True, training=True)
    scale = 1.3 * heads.size**-0.5  # not what a kernel would take of itself
    bounds = torch.from_numpy(starts(positions)).to(device)
    for window in (None, _WINDOW):
        mask = pairs(torch.from_numpy(positions).to(device), window)

        def tried(*parts: Tensor, window: int | None = window) -> Tensor:
            return attention(kernel)(cast(nn.Module, module), *parts, bounds, scaling=scale, sliding_window=window)[0]

        def right(*parts: Tensor, mask: Tensor = mask) -> Tensor:
            query, key, value = parts
            repeated = [part.repeat_interleave(module.num_key_value_groups, dim=1) for part in (key, value)]
            scores = (query @ repeated[0].transpose(2, 3) * scale).masked_fill(~mask, -torch.inf)
            return cast(Tensor, (scores.softmax(-1) @ repeated[1]).transpose(1, 2))

        names = ("output", "gradient of queries", "gradient of keys", "gradient of values")
        if fault := _compared(tried, right, given, upstream, names, dtype):
            return fault
    return ""


def pairs(positions: Tensor, window: int | None) -> Tensor:
    """(rows, 1, length, length), True = sees: what `starts` says, pair by pair."""
    document = (positions == 0).cumsum(-1)
    length = positions.shape[1]
    back = torch.arange(length, device=positions.device)
    distance = back[:, None] - back[None, :]
    near = (distance >= 0) & (distance < (window or length))
    return ((document[:, :, None] == document[:, None, :]) & near)[:, None]


_TOKENS = 67


def _loss_fault(
    kernel: Loss, dim: int, vocabulary: int, trains_head: bool, dtype: torch.dtype, stored: torch.dtype,
    device: torch.device,
) -> str:  # fmt: skip
    dim, vocabulary = _small(dim, 512), _small(vocabulary, 32768)
    random = torch.Generator().manual_seed(1)
    hidden = (2 * torch.randn(_TOKENS, dim, generator=random)).to(dtype).to(device, stored)
    weight = (torch.randn(vocabulary, dim, generator=random) * dim**-0.5).to(dtype).to(device, stored)
    targets = torch.randint(vocabulary, (_TOKENS,), generator=random).to(device)
    targets[::3] = IGNORED

    def tried(hidden: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != stored):
            return kernel(hidden, weight, targets)

    def right(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORED, reduction="sum")

    upstream = torch.full((), 3.0, device=device)
    names = ("loss", "gradient of states", "gradient of the head")
    given = [hidden, weight] if trains_head else [hidden]
    frozen = [] if trains_head else [weight]
    states = _with_gradients(lambda states: tried(states, weight), [hidden], upstream)[1]
    if bool(states[targets == IGNORED].any()):
        return "its gradient of states is not zero where nothing is trained"
    return _compared(
        lambda *parts: tried(*parts, *frozen),
        lambda *parts: right(*parts, *(weight.float() for weight in frozen)),
        given,
        upstream,
        names,
        dtype,
    )


def _small(size: int, block: int) -> int:
    """At most two blocks, and with the same rest as `size`: kernels err at edges, not in the middle."""
    return size if size <= 2 * block else block + size % block


def _compared(
    tried: Callable[..., Tensor],
    right: Callable[..., Tensor],
    given: list[Tensor],
    upstream: Tensor,
    names: tuple[str, ...],
    dtype: torch.dtype,
) -> str:
    exact = _with_gradients(right, [part.float() for part in given], upstream.float())
    got = _with_gradients(tried, given, upstream)
    faults = (deviation(name, mine, theirs, dtype) for name, mine, theirs in zip(names, got, exact, strict=False))
    return next(filter(None, faults), "")


def _with_gradients(work: Callable[..., Tensor], given: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """The result and its gradient with respect to each of `given`."""
    leaves = [part.detach().clone().requires_grad_() for part in given]
    result = work(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, upstream.to(result.dtype))]


def deviation(name: str, got: Tensor, wanted: Tensor, dtype: torch.dtype) -> str:
    """In words; empty within the tolerance of `dtype`."""
    tolerance = TOLERANCES[dtype]
    if got.shape != wanted.shape:
        return f"its {name} has the shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
    mine, right = got.double(), wanted.double()
    if not bool(mine.isfinite().all()):
        return f"its {name} is not finite"
    off = float((mine - right).abs().max() / right.abs().max())
    scale = abs(float((mine * right).sum() / right.square().sum()) - 1)
    if off > tolerance.largest:
        return f"its {name} is off by {off:.2g} of the largest value, {tolerance.largest:g} is allowed"
    if scale > tolerance.scale:
        return f"its {name} is off by {scale:.2g} as a whole, {tolerance.scale:g} is allowed"
    return ""
