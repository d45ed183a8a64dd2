"""The base model of a run that adds tokens (spec.vocabulary), measured as it came.

Rows of new tokens begin untrained, and a base model that is measured with them looks worse than it is: tuning would
seem to gain more and to forget less. So it reads the rows as its own tokenizer cuts them, and its logits are of its own
vocabulary. Loss by token then is of other tokens than the tuned model's; bits per byte are of the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.load import Datasets
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.methods.base import Attached, Base
from finetune_trainer.methods.earlier import Earlier
from finetune_trainer.planning.positions import most_positions
from finetune_trainer.report.record import BASE_FOLDER
from finetune_trainer.store.models import LocalModel
from finetune_trainer.vocabulary.base_head import BaseHead
from finetune_trainer.vocabulary.base_rows import Pieces, base_rows
from finetune_trainer.vocabulary.prepared import Prepared
from finetune_trainer.vocabulary.rows import VocabularyRows

from .loop import Trainer
from .model import LanguageModel


@dataclass(frozen=True)
class Origin:
    local: LocalModel
    data: Datasets
    """By its own tokenizer; after `beside`, its held-out rows are those of the run, one by one."""
    first: int
    """The id of the first new token."""
    pieces: Pieces

    @classmethod
    def of(cls, local: LocalModel, data: Datasets, vocabulary: Prepared | None) -> Origin | None:
        """None where the run has the tokenizer of the base model."""
        if vocabulary is None or vocabulary.pieces is None:
            return None
        return cls(local, data, vocabulary.first, vocabulary.pieces)

    def beside(self, data: Datasets, *, say: Callable[[str], None]) -> tuple[Datasets, Origin]:
        """(the data of the run, this with the same held-out rows). Rows of more tokens here than the model reads are
        left out of both."""
        most, own = most_positions(self.local.path), self.data.held_out
        backend = Tokenizer.load(self.local.path).backend
        run: dict[str, Corpus] = {}
        base: dict[str, Corpus] = {}
        for name, corpus in data.held_out.items():
            found = base_rows(
                corpus, own.get(name), self.pieces, lambda ids: str(backend.decode(ids, skip_special_tokens=False))
            )
            kept = np.arange(len(found)) if most is None else np.flatnonzero(found.lengths <= most)
            whole = len(kept) == len(found)
            if not whole:
                say(f"{name}: {len(found) - len(kept)} rows are left out: the base model reads at most {most} tokens")
            run[name], base[name] = (each if whole else each.take(kept) for each in (corpus, found))
        return data.with_held_out(run), replace(self, data=self.data.with_held_out(base))

    def model(self, model: LanguageModel) -> LanguageModel:
        """The base model, in the network of the run before its first step."""
        head = BaseHead.of(model.network, self.local.path, first=self.first, device=model.device)
        return replace(model, rows=None, base_head=head)

    def measured_on(self, data: Datasets) -> Datasets:
        """By its own tokenizer, with the text to replay that it wrote itself."""
        return replace(self.data, replay=self.data.replay or data.replay)

    def trainer(self, trainer: Trainer) -> Trainer:
        """It only measures. Rows may be longer than those that train."""
        longest = max((int(corpus.lengths.max(initial=1)) for corpus in self.data.held_out.values()), default=1)
        layout = replace(trainer.layout, max_tokens=max(trainer.layout.max_tokens, longest))
        return replace(trainer, model=self.model(trainer.model), layout=layout, train=self.data.train)


def base_of(local: LocalModel, stored: torch.dtype, earlier: Earlier | None, *, changed: bool, output: str) -> Base:
    """What an adapter is for. changed: with other rows, so that the artifact in `output` holds it."""
    if changed:
        own = LocalModel(local.path, None, f"{output.rstrip('/')}/{BASE_FOLDER}")
        return Base(own.loadable, stored, None, local.path)
    return Base(local.loadable, stored, local.revision, local.path, earlier.adapter if earlier else None)


def rows_of(
    vocabulary: Prepared | None, attached: Attached, network: nn.Module, local: LocalModel, device: torch.device
) -> VocabularyRows | None:
    """None where no rows train, or all of them do."""
    if vocabulary is None or attached.kind == "model":
        return None
    return VocabularyRows.of(network, local.path, vocabulary.ids, device=device)
