"""The head of the base model, out of the network with more tokens: its logits are those of the model as it came.

The rows of the new tokens are left out. Where they took rows that the base model had to spare, it has these again; a
model may even write their ids, and then reads them with its own embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_trainer.store.tensors import StoredTensor

from . import derived
from .rows import is_head, with_rows


@dataclass(frozen=True)
class BaseHead:
    first: int
    """Rows that base model and network have in common."""
    spare: Tensor
    """(rows, dim): those of the base model after them."""
    bias: Tensor | None
    """(rows,): of `spare`."""
    given: Tensor
    """(rows, dim): of the embeddings; `spare` where they are tied."""

    @classmethod
    def of(cls, network: nn.Module, base: Path, *, first: int, device: torch.device) -> BaseHead:
        """base: folder of the base model; first: the id of the first new token."""
        stored = derived.by_token(base)
        tied = bool(cast(Any, network).config.tie_word_embeddings)
        by_size = {len(tensor.shape): tensor for name, tensor in stored.items() if is_head(name) and not tied}
        embedding = next(t for name, t in stored.items() if len(t.shape) == 2 and (tied or not is_head(name)))
        rows = embedding.shape[0]

        def read(tensor: StoredTensor) -> Tensor:
            return torch.from_numpy(derived.read_rows(tensor, range(min(first, rows), rows))).to(device)

        given, bias = read(embedding), by_size.get(1)
        return cls(
            first=min(first, rows),
            spare=read(by_size[2]) if 2 in by_size else given,
            bias=None if bias is None else read(bias),
            given=given,
        )

    def of_weight(self, weight: Tensor) -> Tensor:
        """(vocabulary of the network, dim) to (vocabulary of the base model, dim). It copies only where rows were to
        spare."""
        common = weight[: self.first]
        return torch.cat([common, self.spare.to(weight.dtype)]) if len(self.spare) else common

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        """Inside, the network's own logits are the base model's too."""
        hugging = cast(Any, network)
        embedding, head = hugging.get_input_embeddings(), hugging.get_output_embeddings()
        hooks = [head.register_forward_hook(lambda _, given, out: self._scored(given[0], out))]
        if len(self.given):
            hooks.append(
                embedding.register_forward_hook(lambda _, given, out: self._embedded(embedding, given[0], out))
            )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _embedded(self, embedding: nn.Module, tokens: Tensor, out: Tensor) -> Tensor:
        return with_rows(embedding, out, tokens - self.first, self.given)

    def _scored(self, hidden: Tensor, out: Tensor) -> Tensor:
        """(…, vocabulary of the network) to (…, vocabulary of the base model)"""
        common = out[..., : self.first]
        if not len(self.spare):
            return common
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return torch.cat([common, F.linear(hidden, self.spare.to(hidden.dtype), bias).to(out.dtype)], dim=-1)
