"""Prompt tuning: virtual tokens that are learned as they are (Lester et al. 2021, arXiv 2104.08691).

They start as tokens of the vocabulary, drawn or of a given text: a prompt that starts as noise trains several times
worse (PEFT's comparison on Llama-3.2-3B: 0.343 against 0.057 of GSM8K, together with the rate).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Prompt as Settings
from finetune_trainer.data.tokenizer import Tokenizer

from . import soft
from .base import Base
from .lean import lean_peft
from .peft_layout import read_adapter

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    settings: Settings

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> soft.SoftAttached:
        with lean_peft():
            from peft import PromptTuningConfig

        count, text = self.settings.virtual_tokens, self.settings.init_text
        tokens = soft.sampled(network, count, seed=seed) if text is None else _of_text(text, count, base)
        words = cast(Any, network).get_input_embeddings()
        with torch.no_grad():
            rows = words(tokens.to(words.weight.device))
        config = PromptTuningConfig(**soft.settings_of(base, network, count))
        return soft.attach_tokens(network, soft.Table(rows), config)

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        return read_adapter(network, folder)


def _of_text(text: str, count: int, base: Base) -> Tensor:
    """(count,): the text's tokens, cut or repeated."""
    if base.folder is None:
        raise ValueError("a prompt that starts as a text needs the folder of the base model's tokenizer")
    ids = [int(token) for token in Tokenizer.load(base.folder).encode([text])[0].ids]
    if not ids:
        raise FinetuneError(Reason.InvalidSpec, "method.prompt.initText has no tokens", "Write a text, or remove it.")
    if len(ids) > count:
        _log.warning("method.prompt.initText has %d tokens: the first %d are used", len(ids), count)
    return torch.tensor((ids * -(-count // len(ids)))[:count])
