"""What an analysis asks of a model, which stays as it is: nats of documents, states of prompts, likelihoods of labels.

One process, one device, float32. Short windows (`TOKENS`), since an analysis needs many documents and no long ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_trainer.data.corpus import Corpus
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.parallel.single import Single
from finetune_trainer.transfer.evaluate import Layout, choice_nats, evaluate
from finetune_trainer.transfer.features import features
from finetune_trainer.transfer.probe import log_softmax

from .capabilities import probe
from .linear_probe import prompts
from .model import LanguageModel, load_network

TOKENS = 256
"""Longest window, in tokens."""
AT_ONCE = 1024
"""Tokens of a micro-batch."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """A model that is analysed."""

    model: LanguageModel
    layout: Layout
    blocks: int

    @classmethod
    def load(cls, folder: Path, *, pad_id: int) -> Subject:
        """ModelUnsupported where it cannot be loaded. On a GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network, _ = load_network(folder, dtype=torch.float32, strategy=Single(), device=device, frozen=True)
        network.eval()
        model = LanguageModel(network, device, None, probe(network, device), Single())
        layout = Layout(max_tokens=AT_ONCE, sequence_length=TOKENS, packing=model.capabilities.isolates, pad_id=pad_id)
        return cls(model, layout, decoder_layers(network).count)

    def nats(self, corpus: Corpus) -> Floats:
        """(documents,)"""
        return evaluate(self.model, corpus, layout=self.layout, strategy=Single(), going_on=lambda: True).nats

    def prompt_states(self, corpus: Corpus, layers: tuple[int, ...]) -> NDArray[np.float32]:
        """(rows, layers, 2 · dim) of each prompt of a classification, see `transfer.features`."""
        out = np.zeros((len(corpus), len(layers), 2 * self.model.hidden_size), np.float32)
        for batch in self.layout.batches(prompts(corpus), np.arange(len(corpus))):
            out[batch.documents] = features(self.model.network, batch, layers)
        return out

    def label_logs(self, corpus: Corpus) -> NDArray[Any]:
        """(rows, labels): log-probabilities that the model gives to each label after a prompt."""
        assert corpus.choices is not None
        nats = np.zeros((len(corpus), len(corpus.choices.answers)))
        for rows, found in choice_nats(self.model, corpus, self.layout):
            nats[rows] = found
        return log_softmax(-nats)
