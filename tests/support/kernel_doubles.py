"""Kernels in plain torch, for machines without a GPU: right ones, and some that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune_trainer.data.pack import IGNORED


def varlen(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, longest: int, scale: float, window: int | None
) -> Tensor:
    """What flash attention computes, a document at a time."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    bounds = starts.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(query)
    seen = []
    for start, end in pairwise(bounds):
        assert 0 < end - start <= longest
        parts = [part[start:end].transpose(0, 1) for part in (query, key, value)]
        reach = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        if window is not None:
            reach &= ~torch.ones_like(reach).tril(-window)
        seen.append(F.scaled_dot_product_attention(*parts, attn_mask=reach, scale=scale).transpose(0, 1))
    return torch.cat(seen)


def _with(**changes: Any) -> Callable[..., Tensor]:
    def kernel(*parts: Tensor, **given: Any) -> Tensor:
        return varlen(*parts, **{**given, **changes})

    return kernel


def leaky(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, **given: Any) -> Tensor:
    """The first two documents are one to it."""
    given["longest"] = len(query)
    return varlen(query, key, value, torch.cat([starts[:1], starts[2:]]), **given)


def raising(*_: Tensor, **__: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore words")


def not_a_number(*parts: Tensor, **given: Any) -> Tensor:
    out = varlen(*parts, **given)
    return torch.where(torch.arange(len(out))[:, None, None] == 5, torch.nan, out)


def forgetful(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, **given: Any) -> Tensor:
    """Right forwards; keys get half of their gradient."""
    return varlen(query, key / 2 + key.detach() / 2, value, starts, **given)


def a_little_more(*parts: Tensor, **given: Any) -> Tensor:
    return 1.01 * varlen(*parts, **given)


ignoring_windows = _with(window=None)
ignoring_the_scale = _with(scale=16**-0.5)


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).float(), targets, ignore_index=IGNORED, reduction="sum")


def averaging(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).float(), targets, ignore_index=IGNORED)


def training_masked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What is masked is token 0 to it."""
    return cross_entropy(hidden, weight, targets.clamp(min=0))


def right_by_value_only(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The gradient is twice too large."""
    nats = cross_entropy(hidden, weight, targets)
    return 2 * nats - nats.detach()


def freezing_the_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(hidden, weight / 2 + weight.detach() / 2, targets)
