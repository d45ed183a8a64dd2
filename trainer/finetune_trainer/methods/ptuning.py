"""P-tuning: virtual tokens that a small network makes from a table, which trains more steadily than the tokens alone
(Liu et al. 2021, arXiv 2103.10385). What is exported are the tokens; the network that made them has served its purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune_api.methods import PTuning as Settings

from . import soft
from .base import Base
from .lean import lean_peft
from .peft_layout import read_adapter


class PromptEncoder(nn.Module):
    """A table and three layers, as PEFT's: 20 tokens of a model with width 3072 have 28,382,208 parameters."""

    def __init__(self, count: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(count, dim))
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def forward(self) -> Tensor:
        return cast(Tensor, self.layers(self.table))


@dataclass(frozen=True)
class PTuning:
    settings: Settings

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> soft.SoftAttached:
        with lean_peft():
            from peft import PromptEncoderConfig

        dim = int(cast(Any, network).get_input_embeddings().weight.shape[1])
        hidden = self.settings.hidden or dim
        count = self.settings.virtual_tokens
        torch.manual_seed(seed)
        encoder = PromptEncoder(count, dim, hidden)
        config = PromptEncoderConfig(encoder_hidden_size=hidden, **soft.settings_of(base, network, count))
        return soft.attach_tokens(network, encoder, config)

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        return read_adapter(network, folder)
