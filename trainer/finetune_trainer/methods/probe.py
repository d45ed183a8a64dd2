"""A linear classifier on the frozen model's states: no step is trained, the model stays as it is.

The cheapest thing that can work, and the line that anything dearer has to beat. How it is fitted: transfer.probe; from
what: transfer.features; by whom: train.probing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from finetune_api.methods import Probe as Settings
from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.transfer.features import features
from finetune_trainer.transfer.probe import Probe as Classifier

from .base import Base


@dataclass
class ProbeAttached:
    settings: Settings
    base: Base
    lowest_layer: int
    classifier: Classifier | None = None
    """Once it is fitted."""
    trainable: Mapping[str, nn.Parameter] = field(default_factory=dict)
    kind: Literal["adapter"] = "adapter"

    def settle(self) -> None:
        """Fitted weights are final."""

    def export(self, folder: Path) -> None:
        if self.classifier is None:
            raise ValueError("the probe is not fitted")
        self.classifier.save(
            folder,
            base_model=self.base.name,
            revision=self.base.revision,
            features="mean of the layer's states without those of token 0, then the state of the last token",
            text="the classification prompt up to where the label begins",
        )


@dataclass(frozen=True)
class Probe:
    settings: Settings

    def attach(self, network: nn.Module, *, seed: int, base: Base) -> ProbeAttached:  # noqa: ARG002
        network.requires_grad_(False)
        return ProbeAttached(self.settings, base, decoder_layers(network).count)

    def load(self, network: nn.Module, folder: Path) -> nn.Module:
        return load(network, folder)


def load(network: nn.Module, folder: Path) -> Probed:
    """`network`, the untouched base, with the classifier of `folder` on it."""
    return Probed(network, Classifier.load(folder))


class Probed(nn.Module):
    """A network that answers with the probabilities of labels."""

    def __init__(self, network: nn.Module, classifier: Classifier) -> None:
        super().__init__()
        self.network = network
        self.classifier = classifier

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, length) of prompts without padding to log-probabilities (rows, labels)."""
        rows, length = tokens.shape
        batch = MicroBatch(
            tokens=tokens.cpu().numpy(),
            positions=np.arange(length)[None].repeat(rows, 0),
            segments=np.arange(rows)[:, None].repeat(length, 1),
            targets=np.full((rows, length), -100),
            documents=np.arange(rows),
        )
        found = features(self.network, batch, [self.classifier.layer])[:, 0]
        return torch.from_numpy(self.classifier.log_probabilities(found))
