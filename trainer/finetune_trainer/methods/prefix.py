"""Prefix tuning: learned keys and values in front of every layer's own (Li and Liang 2021, arXiv 2101.00190).

The prefix starts as the activations of real tokens, drawn from the vocabulary: the paper found random starts to be much
worse, and the model begins as one that has read those tokens.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Prefix as Settings
from finetune_trainer.attention_windows import narrowest
from finetune_trainer.decoder_blocks import decoder_of

from . import soft
from .base import Base
from .lean import lean_peft
from .peft_layout import read_adapter


@dataclass(frozen=True)
class Prefix:
    settings: Settings

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> soft.SoftAttached:
        with lean_peft():
            from peft import PrefixTuningConfig

        network.requires_grad_(False)
        count = self.settings.virtual_tokens
        body = decoder_of(network)
        pairs = _activations(network, body, soft.sampled(network, count, seed=seed))
        heads, size = int(pairs[0].shape[0]), int(pairs[0].shape[2])
        rows = torch.cat([pair.transpose(0, 1).reshape(count, heads * size) for pair in pairs], dim=1)
        encoder = soft.Table(rows)
        network.add_module("prefix", encoder)
        hook = _Hook(body, encoder, layers=len(pairs) // 2, heads=heads)
        body.register_forward_pre_hook(hook, with_kwargs=True)
        settings = soft.settings_of(base, network, count)
        # PEFT means the heads of keys and values, where a model has fewer of them.
        settings |= {"num_layers": len(pairs) // 2, "num_attention_heads": heads, "token_dim": heads * size}
        return soft.SoftAttached(
            encoder,
            soft.named(encoder),
            lowest_layer=0,
            ids=np.zeros(0, np.int32),
            switch=hook,
            config=PrefixTuningConfig(**settings),
        )

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        return read_adapter(network, folder)


class _Hook:
    """Hands the prefix to the body of a network as a cache, with the mask and the positions that belong to it."""

    def __init__(self, body: nn.Module, encoder: nn.Module, *, layers: int, heads: int) -> None:
        config = cast(Any, body).config
        self.on = True
        self._encoder = encoder
        self._layers = layers
        self._heads = heads
        self._cache = _cache_name(body)
        self._eager = config._attn_implementation == "eager"
        # With a mask of ours a layer would not see its own, narrower window, and some compute distances from masks of
        # tokens (BLOOM): such models get one document a row.
        self._alone = narrowest(config) is not None or not _takes_pairs(body)

    def __call__(self, body: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not self.on:
            return args, given
        told = dict(given)
        first = args[0] if args else told.get("input_ids")
        tokens = told["inputs_embeds"] if first is None else first
        rows, dtype = int(tokens.shape[0]), cast(Any, body).dtype
        keys_and_values = self._encoder()
        count = int(keys_and_values.shape[0])
        positions, mask = told.get("position_ids"), told.get("attention_mask")
        if mask is None and positions is not None and not self._alone:
            mask = _isolating(positions)
        if mask is not None:
            mask = F.pad(mask, (count, 0), value=1)
            told["attention_mask"] = _additive(mask, dtype) if self._eager and mask.dtype == torch.bool else mask
        if positions is not None:
            told["position_ids"] = positions + count
        told[self._cache] = self._filled(keys_and_values.to(dtype), rows)
        return args, told

    def _filled(self, flat: Tensor, rows: int) -> Any:
        """A cache with the prefix once for each row; flat: (count, layers * 2 * heads * size)."""
        from transformers import DynamicCache

        cache = DynamicCache()
        # (layers * 2, heads, count, size)
        pairs = flat.view(len(flat), self._layers * 2, self._heads, -1).permute(1, 2, 0, 3)
        pairs = pairs[:, None].expand(-1, rows, -1, -1, -1)
        for layer in range(self._layers):
            cache.update(pairs[2 * layer], pairs[2 * layer + 1], layer)
        return cache


@torch.no_grad()
def _takes_pairs(body: nn.Module) -> bool:
    """Whether it takes a mask of pairs of tokens."""
    device = next(body.parameters()).device
    tokens, mask = torch.zeros(1, 2, dtype=torch.long, device=device), torch.ones(1, 1, 2, 2, device=device).tril()
    try:
        body(input_ids=tokens, attention_mask=mask.bool(), use_cache=False)
    except (ValueError, TypeError, IndexError, AttributeError):
        return False
    return True


def _isolating(positions: Tensor) -> Tensor:
    """(rows, 1, length, length), True = sees: a document begins where positions do not count on."""
    begins = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1) != 1
    document = begins.cumsum(-1)
    length = positions.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """As attention expects it that adds the mask to its scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _cache_name(body: nn.Module) -> str:
    """The argument's name has changed in transformers, model by model."""
    known = inspect.signature(type(body).forward).parameters
    return "cache" if "cache" in known else "past_key_values"


@torch.no_grad()
def _activations(network: nn.Module, body: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Keys and values of each layer in turn, (heads, tokens, size), of a network that reads `tokens`.

    ModelUnsupported where layers keep something else, or not all of them the same.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    failure, unfinished = "", None
    try:
        try:
            body(input_ids=tokens[None], use_cache=True, **{_cache_name(body): cache})
        except RuntimeError as error:  # without values (on the meta device) experts cannot be chosen
            unfinished = error
        pairs = [pair[0] for layer in cache.layers for pair in (layer.keys, layer.values)]
        if len({pair.shape for pair in pairs}) > 1 or not (pairs or unfinished):
            failure = "its layers keep keys and values of different shapes"
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        failure = f"its layers keep other states than keys and values of attention ({type(error).__name__}: {error})"
    if unfinished and not failure:
        raise unfinished
    if failure:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"method prefix cannot give {type(network).__name__} learned keys and values: {failure}",
            "Choose method.type: prompt, ptuning or lora.",
        )
    return pairs
