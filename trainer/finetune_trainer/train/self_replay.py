"""regularization.replay.source self: text that the base model writes before the first step, to be replayed.

Each text is drawn at temperature 1 from the model's own distribution, from the token that begins a text on: `NEW`
tokens or as many as a row may have. Repetitive texts and copies are left out. What is written is stored next to the
checkpoints: later attempts replay the same texts, whatever hardware they run on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus, Tokens, corpus_of
from finetune_trainer.data.load import Datasets
from finetune_trainer.data.order import total_steps
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.random_streams import OWN_TEXT
from finetune_trainer.store.checkpoints import CheckpointStore

from .model import LanguageModel
from .reporter import Reporter
from .written import answers

NEW = 128
"""Tokens of a text."""
MOST, FEWEST = 256, 16
"""Texts that are written, and that must be left."""
REPEATED = 0.2
"""Share of four tokens in a row that occurred before, above which a text is left out."""

_NOTE = "self-replay"


def own_text(
    spec: FineTuneJobSpec,
    model: LanguageModel,
    data: Datasets,
    folder: Path,
    *,
    store: CheckpointStore | None,
    reporter: Reporter,
) -> Datasets:
    """`data` with the text to replay, if the base model is to write it. The network is the untouched model, whose files
    are in `folder`. Collective; `store` is rank 0's. NothingToTrain where too little is left."""
    replay = spec.regularization.replay
    if replay is None or replay.source != "self":
        return data
    noted = model.strategy.broadcast_json(store.noted(_NOTE) if store is not None else None)
    if noted is None:
        noted = _written(spec, model, data, Tokenizer.load(folder), reporter)
        if store is not None:
            store.note(_NOTE, noted)
    return replace(data, replay=_corpus(noted, Tokenizer.load(folder)))


def texts_of(spec: FineTuneJobSpec, data: Datasets) -> int:
    """As many as the run replays, at most MOST."""
    training, replay = spec.training, spec.regularization.replay
    assert replay is not None
    steps = total_steps(
        data.mixture, batch_size=training.batch_size, epochs=training.epochs, max_steps=training.max_steps
    )
    return min(MOST, max(2 * FEWEST, math.ceil(steps * replay.rows_per_step(training.batch_size))))


def _written(
    spec: FineTuneJobSpec, model: LanguageModel, data: Datasets, tokenizer: Tokenizer, reporter: Reporter
) -> list[list[int]]:
    count, new = texts_of(spec, data), min(NEW, spec.data.sequence_length - 1)
    reporter.phase("loading", f"the base model writes {count} texts of {new} tokens to replay")
    first = _first(tokenizer)
    found = answers(
        model,
        [np.array([first], np.int32)] * count,
        mode="sampled",
        new=new,
        stops=frozenset(),
        pad=0,  # texts are equally long: none is padded
        seed=spec.training.seed,
        most_tokens=16 * (new + 1),
        stream=OWN_TEXT,
        alive=reporter.alive,
        compiled=spec.training.compile,
    )
    kept = filtered([(first, *tokens) for tokens in found.tokens])
    reporter.say(f"{len(kept)} of {count} texts of the base model are replayed; others repeat themselves")
    if len(kept) < FEWEST:
        raise FinetuneError(
            Reason.NothingToTrain,
            f"regularization.replay.source self: only {len(kept)} of the {count} texts that the base model wrote do "
            "not repeat themselves",
            "Set regularization.replay.uri to general text instead.",
        )
    return [list(map(int, text)) for text in kept]


def filtered(texts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Without copies, and without those that repeat themselves."""
    return [text for text in dict.fromkeys(texts) if _repeated(text) <= REPEATED]


def _repeated(text: Sequence[int]) -> float:
    """Share of four tokens in a row that occurred before; 1 of a text that has none."""
    grams = [tuple(text[at : at + 4]) for at in range(len(text) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 1.0


def _first(tokenizer: Tokenizer) -> int:
    """What a text begins with; of a tokenizer that puts nothing there, the token that it names for that, or that ends
    the text before."""
    named = tokenizer.special.get("bos_token")
    known = (tokenizer.bos, named and tokenizer.backend.token_to_id(named), tokenizer.eos)
    return next((token for token in known if isinstance(token, int)), 0)


def _corpus(texts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> Corpus:
    """All but the first token of each are trained."""
    rows: list[Tokens] = [np.array(text, np.int32) for text in texts]
    sizes = [len(tokenizer.backend.decode(list(text)).encode()) for text in texts]
    return corpus_of(rows, [np.arange(len(row)) > 0 for row in rows], sizes)
