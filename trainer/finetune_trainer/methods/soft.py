"""Soft prompts: what the three methods share that learn an input instead of changing the model.

A learned prompt is a row of virtual tokens in front of every document. They have numbers above the vocabulary, so that
packing, masks and positions treat them as tokens like any other, and each document of a packed row has a prompt of its
own (PEFT's forward drops positions, and so lets packed documents see each other). A prefix is learned keys and values
in every layer: it has no tokens, and all documents of a row share it.

On disk all are PEFT's: one tensor `prompt_embeddings` and a configuration for inference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.corpus import Tokens
from finetune_trainer.decoder_blocks import body_of, decoder_layers

from .base import Base
from .peft_layout import settle_config


class Switch(Protocol):
    """What lets a network use a prompt, and can leave it alone."""

    on: bool


@dataclass(frozen=True)
class SoftAttached:
    encoder: nn.Module
    """Called without arguments it gives what PEFT stores, (virtual tokens, width)."""
    trainable: Mapping[str, nn.Parameter]
    lowest_layer: int
    ids: Tokens
    """Numbers of the virtual tokens that belong in front of every row; empty for a prefix."""
    switch: Switch
    config: Any
    """PEFT's."""
    kind: Literal["adapter"] = "adapter"

    @property
    def in_front(self) -> int:
        """Learned keys and values before every row, which are not tokens of it."""
        return 0 if len(self.ids) else int(self.config.num_virtual_tokens)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the network is the untouched base model. A prompt is nothing like it, not even before step 1."""
        self.switch.on = False
        try:
            yield
        finally:
            self.switch.on = True

    def settle(self) -> None:
        """Prompts are written as they are."""

    def export(self, folder: Path) -> None:
        from safetensors.torch import save_file

        with torch.no_grad():
            prompt = self.encoder().detach().to("cpu", torch.float32).clone().contiguous()
        save_file({"prompt_embeddings": prompt}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(folder)
        settle_config(folder)


class Table(nn.Module):
    """Learned rows, as they are used."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows.detach().to(torch.float32).clone())

    def forward(self) -> Tensor:
        return self.weight


class VirtualTokens(nn.Module):
    """An input embedding in which the numbers after the vocabulary are the rows of a prompt."""

    def __init__(self, words: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.words = words
        self.encoder = encoder
        self.on = True

    @property
    def weight(self) -> Tensor:
        """(vocabulary, dim), of real tokens."""
        return cast(Tensor, self.words.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, length) to (rows, length, dim)."""
        if not self.on:
            return cast(Tensor, self.words(tokens))
        real = tokens.clamp(max=self.weight.shape[0] - 1)
        embedded = self.words(real)
        prompt = self.encoder().to(embedded.dtype)
        virtual = F.embedding((tokens - self.weight.shape[0]).clamp(min=0), prompt)
        return torch.where((tokens != real)[..., None], virtual, embedded)


def attach_tokens(network: nn.Module, encoder: nn.Module, config: Any) -> SoftAttached:
    """Put the encoder's rows into the vocabulary of `network`, whose own weights are frozen."""
    network.requires_grad_(False)
    words = cast(Any, network).get_input_embeddings()
    _check_embedded_once(network, words)
    encoder.to(words.weight.device)
    extended = VirtualTokens(words, encoder)
    cast(Any, network).set_input_embeddings(extended)
    count, first = int(config.num_virtual_tokens), int(words.weight.shape[0])
    return SoftAttached(
        encoder,
        named(encoder),
        lowest_layer=-1,
        ids=np.arange(first, first + count, dtype=np.int32),
        switch=extended,
        config=config,
    )


_OF_PLACES = re.compile("pos|wpe|type")
"""Names of tables that are asked by a token's place or kind."""


def _check_embedded_once(network: nn.Module, words: nn.Module) -> None:
    """ModelUnsupported where tokens are looked up in a second table too: virtual tokens have no row there."""
    others = [
        name
        for name, module in body_of(network).named_modules()
        if isinstance(module, nn.Embedding) and module is not words and not _OF_PLACES.search(name)
    ]
    if others:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{type(network).__name__} looks tokens up in {others[0]} besides its embeddings, where virtual tokens "
            "have no row",
            "Choose method.type: lora.",
        )


def named(encoder: nn.Module) -> dict[str, nn.Parameter]:
    return {f"prompt.{name}": parameter for name, parameter in encoder.named_parameters()}


def sampled(network: nn.Module, count: int, *, seed: int) -> Tensor:
    """(count,): tokens of the vocabulary, the same ones for a seed."""
    words = cast(Any, network).get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(int(words.shape[0]), (count,), generator=generator).to(words.device)


def settings_of(base: Base, network: nn.Module, count: int) -> dict[str, Any]:
    """What PEFT's three configurations have in common."""
    config = cast(Any, network).config.get_text_config()
    return {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": True,
        "num_virtual_tokens": count,
        "num_transformer_submodules": 1,
        "token_dim": int(cast(Any, network).get_input_embeddings().weight.shape[1]),
        # PEFT asks for both and uses them for a prefix alone; a state-space model has no heads.
        "num_attention_heads": int(getattr(config, "num_attention_heads", None) or 1),
        "num_layers": decoder_layers(network).count,
    }
