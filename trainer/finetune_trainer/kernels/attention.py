"""Attention by the boundaries of documents, for transformers' models.

A packed micro-batch is one long line of documents to such a kernel: none sees another, and nothing is computed for
pairs that are not within one. Where they begin travels as the attention mask: a mask of four dimensions is handed to
every layer as it is, without a look at its values (which would wait for the GPU), and a block that is run again for its
gradients gets it again. transformers' own flash attention is not used: it finds boundaries in positions only where
there is one row, and else lets the documents of a row see each other without a word.

    starts      where documents begin, as a mask
    install     a network whose layers call a kernel; without starts, or with a mask of pairs, sdpa runs as before
    KERNELS     how each is called: (tokens, heads, size) in, the same out
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune_trainer.torch_api import need


class Kernel(Protocol):
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        starts: Tensor,
        /,
        *,
        longest: int,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """query: (tokens, heads, size), key and value: (tokens, heads or a divisor of them, size), starts:
        (documents + 1,) int32. Causal within each document; `window`: so many tokens back, with the token itself."""


class Unfit(NotImplementedError):
    """A network asks for what no kernel here does."""


def by_torch(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, longest: int, scale: float, window: int | None
) -> Tensor:
    need("torch.nn.attention.varlen:varlen_attn", what_for="attention by torch")
    from torch.nn.attention.varlen import varlen_attn

    window_size = (-1 if window is None else window - 1, 0)
    # Before torch 2.12 grouped heads reach the kernel unasked; since then they have to be announced.
    announced = "enable_gqa" in inspect.signature(varlen_attn).parameters
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if announced else {}
    return cast(
        Tensor,
        varlen_attn(
            query, key, value, starts, starts, longest, longest, scale=scale, window_size=window_size, **grouped
        ),
    )


def _by_flash(module: str) -> Kernel:
    """flash-attn and flash-attn-3 are called alike."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, longest: int, scale: float, window: int | None
    ) -> Tensor:
        import importlib

        answer = importlib.import_module(module).flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=starts,
            cu_seqlens_k=starts,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            softmax_scale=scale,
            causal=True,
            window_size=(-1 if window is None else window - 1, 0),
            deterministic=True,  # sums of gradients in a fixed order: a little slower, and the same twice
        )
        return cast(Tensor, answer[0] if isinstance(answer, tuple) else answer)

    return kernel


KERNELS: Mapping[str, Kernel] = {
    "torch": by_torch,
    "flash-attn": _by_flash("flash_attn"),
    "flash-attn-3": _by_flash("flash_attn_interface"),
}


def starts(positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """(rows, length) positions, from 0 in each document, to (1, 1, 1, documents + 1): [[0 1 2 0 1]] to [[[[0 3 5]]]].

    Padding is a document too, and so nothing is left over."""
    flat = np.append(np.flatnonzero(positions.reshape(-1) == 0), positions.size)
    return flat.astype(np.int32)[None, None, None]


def attention(kernel: Kernel) -> Callable[..., tuple[Tensor, None]]:
    """The function that transformers calls."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, None]:
        """query: (rows, heads, length, size) to (rows, length, heads, size)."""
        if attention_mask is None or attention_mask.dtype != torch.int32:
            return cast(
                "tuple[Tensor, None]", sdpa_attention_forward(module, query, key, value, attention_mask, **given)
            )
        if unknown := [name for name in _UNKNOWN if not _absent(given.get(name))]:
            raise Unfit(f"the model's attention has {', '.join(unknown)}")
        if given.get("is_causal") is False:
            raise Unfit("the model's attention looks ahead")
        rows, _, length, size = query.shape
        dtype = torch.get_autocast_dtype(query.device.type) if _autocast(query) else value.dtype
        query, key, value = (part.to(dtype).transpose(1, 2).flatten(0, 1) for part in (query, key, value))
        seen = kernel(
            query,
            key,
            value,
            attention_mask.flatten(),
            longest=length,  # no document is longer than its row, and kernels skip what is not there
            scale=given.get("scaling") or size**-0.5,
            window=given.get("sliding_window"),
        )
        return seen.view(rows, length, *seen.shape[1:]), None

    return forward


_PREFIX = "boundaries_"

_UNKNOWN = ("dropout", "softcap", "s_aux", "position_bias")
"""What would be left out without a word."""


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and value == 0)


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def install(network: nn.Module, name: str, kernel: Kernel) -> None:
    """Unfit where the layers of this architecture call attention another way."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    known = _PREFIX + name.replace("flash-attn", "fa")  # transformers takes any name with "flash" in it for its own
    AttentionInterface.register(known, attention(kernel))
    AttentionMaskInterface.register(known, sdpa_mask)
    switch(network, known)


def windowed_layers(config: Any) -> int:
    """How many layers have to pass a window to a kernel: else it is in masks of pairs alone, and a short text does not
    show it. Unfit where layers see what no kernel here can be passed."""
    kinds = getattr(config, "layer_types", None)
    other = sorted(set(kinds or ()) - {"full_attention", "sliding_attention"})
    if other or getattr(config, "attention_chunk_size", None):
        raise Unfit(f"the model has layers with {', '.join(other) or 'chunked attention'}")
    if kinds:
        return int(kinds.count("sliding_attention"))
    uses = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return int(config.num_hidden_layers) if uses else 0


def switch(network: nn.Module, known: str) -> None:
    """To an attention that transformers knows by this name."""
    cast(Any, network).set_attn_implementation(known)
    if named(network) != known:
        raise Unfit("the model's attention cannot be exchanged")


def named(network: nn.Module) -> str:
    """The name by which transformers knows it."""
    return str(cast(Any, network).config._attn_implementation)


def takes_starts(network: nn.Module) -> bool:
    return named(network).startswith(_PREFIX)
