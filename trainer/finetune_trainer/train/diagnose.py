"""What an analysis asks of a model, which stays as it is: nats of documents, states of prompts and of tokens,
likelihoods of labels. And of an artifact's model.

One process, one device, float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.token_sample import TokenSample
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.methods import fault
from finetune_trainer.methods.lora import Lora
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.single import Single
from finetune_trainer.transfer.evaluate import Layout, choice_nats, evaluate
from finetune_trainer.transfer.features import features
from finetune_trainer.transfer.probe import log_softmax

from .auto_layers import layer_gradients
from .capabilities import probe
from .linear_probe import prompts
from .model import LanguageModel, load_network
from .token_states import layout_of, part_of_states

Floats = NDArray[np.float64]


_OTHER_BASE = "Set model.uri to the model that the artifact was trained from."


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
        return cls(model, layout_of(model, pad_id=pad_id), decoder_layers(network).count)

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
        return part_of_states(
            self.model, sample, layers, layout=self.layout, strategy=Single(), going_on=lambda: True
        ).states

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
