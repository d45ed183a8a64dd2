"""The head and its cross-entropy at once, by third-party kernels.

Apple's cut_cross_entropy is left out. It sums gradients under locks, in an order that changes and in 16 bits, and its
locks fence nothing: what such a race does wrong, a small problem does not show, so it cannot be proved at start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor

from finetune_trainer.data.pack import IGNORED


class Loss(Protocol):
    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy of `hidden @ weight.T`, in nats: a scalar in fp32, with gradients of both.

        hidden: (tokens, dim), weight: (vocab, dim), targets: (tokens,) int64, IGNORED where nothing is trained."""


def by_liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    nats = liger_fused_linear_cross_entropy(
        hidden,
        weight,
        targets,
        ignore_index=IGNORED,
        reduction="sum",
        accum_dtype=torch.float32,  # else a head in 16 bits would lose small gradients of many chunks
    )
    return cast(Tensor, nats).float()


KERNELS: Mapping[str, Loss] = {"liger-kernel": by_liger}


def with_gradients(kernel: Loss, reference: Loss) -> Loss:
    """`kernel` where there is something to learn from; kernels take no empty batches, and evaluation stays the same
    whatever a run trains with."""

    def nats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        return (kernel if learns and len(targets) else reference)(hidden, weight, targets)

    return nats
