"""What an analysis asks of a model, which stays as it is: nats of documents, states of prompts and of tokens,
likelihoods of labels. And of an artifact's model.

One process, one device, float32. Short windows (`TOKENS`), since an analysis needs many documents and no long ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.pack import PADDING
from finetune_trainer.data.sample import drawn_part
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.methods import fault
from finetune_trainer.methods.lora import Lora
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.single import Single
from finetune_trainer.transfer.evaluate import Layout, choice_nats, evaluate
from finetune_trainer.transfer.features import features, token_states
from finetune_trainer.transfer.probe import log_softmax

from .auto_layers import layer_gradients
from .capabilities import probe
from .linear_probe import prompts
from .model import LanguageModel, load_network

TOKENS = 256
"""Longest window, in tokens."""
AT_ONCE = 1024
"""Tokens of a micro-batch."""

Floats = NDArray[np.float64]


EACH = 64
"""Tokens of a document in a sample: further ones depend on these."""

_OTHER_BASE = "Set model.uri to the model that the artifact was trained from."


@dataclass(frozen=True)
class TokenSample:
    """Tokens of documents whose states are compared: spread over each document, without its first token."""

    corpus: Corpus
    documents: NDArray[np.int64]
    """(tokens,): from 0, one document after another."""
    places: NDArray[np.int64]
    """(documents, longest): where the token at a position is among `documents`; -1 for all others."""

    @classmethod
    def of(cls, corpus: Corpus, *, tokens: int, seed: int) -> TokenSample:
        """About so many, a few more rather than fewer, of as few documents as have them; all where there are fewer."""
        counts = np.minimum(np.maximum(corpus.lengths - 1, 0), EACH)
        drawn = drawn_part(corpus, max(1, math.ceil(1.1 * tokens / max(1e-9, float(counts.mean())))), seed)
        places = np.full((len(drawn), int(drawn.lengths.max())), -1, np.int64)
        owners: list[int] = []
        for document, length in enumerate(drawn.lengths.tolist()):
            for position in np.unique(np.linspace(1, length - 1, min(length - 1, EACH)).astype(np.int64)):
                places[document, position] = len(owners)
                owners.append(document)
        return cls(drawn, np.array(owners, np.int64), places)


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

    def layer_gradients(self, corpus: Corpus, *, seed: int, batch_size: int) -> list[float]:
        """(blocks,): how strongly the first steps of a training on these rows would move each block."""
        return layer_gradients(
            self.model, corpus, layout=self.layout, seed=seed, batch_size=batch_size, alive=lambda: None
        )

    def token_states(self, sample: TokenSample, layers: tuple[int, ...]) -> NDArray[np.float32]:
        """(layers, tokens, dim)"""
        out = np.zeros((len(layers), len(sample.documents), self.model.hidden_size), np.float32)
        corpus = sample.corpus
        for batch in self.layout.batches(corpus, np.arange(len(corpus))):
            positions = np.minimum(batch.positions, sample.places.shape[1] - 1)  # padding may be longer
            index = sample.places[batch.documents[batch.segments], positions]
            wanted = (batch.segments != PADDING) & (index >= 0)
            out[:, index[wanted]] = token_states(self.model.network, batch, layers, wanted)
        return out

    def tuned(self, method: Method, artifact: Path) -> Subject:
        """The artifact's model, in float32. An adapter is attached to this one's network, which is then another.
        ModelUnsupported where it does not fit."""
        made = Lora(method.low_rank) if method.low_rank is not None else method_of(method)
        try:
            with fault.of_model(self.model.network, "cannot take the artifact", hint=_OTHER_BASE):
                loaded: Any = made.load(self.model.network, artifact)
        except RuntimeError as error:  # torch's word for tensors of another shape
            message = f"the artifact does not fit the model: {' '.join(str(error).split())[:400]}"
            raise FinetuneError(Reason.ModelUnsupported, message, _OTHER_BASE) from error
        network = loaded.get_base_model() if hasattr(loaded, "peft_config") else loaded
        network.eval()
        model = LanguageModel(network, self.model.device, None, self.model.capabilities, Single())
        return Subject(model, self.layout, self.blocks)

    def label_logs(self, corpus: Corpus) -> NDArray[Any]:
        """(rows, labels): log-probabilities that the model gives to each label after a prompt."""
        assert corpus.choices is not None
        nats = np.zeros((len(corpus), len(corpus.choices.answers)))
        for rows, found in choice_nats(self.model, corpus, self.layout):
            nats[rows] = found
        return log_softmax(-nats)
