"""How the model's tokenizer cuts each source of the data, and which words are typical of the training rows.

Rows are read back from their tokens, without what all rows of a source begin and end with (chat template, instruction)
and without the answers of a classification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.statistics.fragmentation import Cut, Fragmentation, Term, fragmentation, typical_terms

TERMS = 12
"""Terms that are reported."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    sources: Mapping[str, Fragmentation]
    """By name: each source of the training rows, general text, each slice."""
    terms: tuple[Term, ...]
    """Of the training rows, against general text; empty without it."""


def vocabulary(
    training: Mapping[str, Corpus], others: Mapping[str, Corpus], *, general: str, tokenizer: Tokenizer
) -> Vocabulary:
    """Samples of documents by name; general: the one of `others` that terms are compared with."""
    cuts = {name: cuts_of(corpus, tokenizer) for name, corpus in {**training, **others}.items()}
    ours = [cut for name in training for cut in cuts[name]]
    return Vocabulary(
        sources={name: fragmentation(each) for name, each in cuts.items() if each},
        terms=tuple(typical_terms(ours, cuts.get(general, []), most=TERMS)),
    )


def cuts_of(corpus: Corpus, tokenizer: Tokenizer) -> list[Cut]:
    """Of the documents that have text of their own."""
    rows = [corpus.row(index).tokens for index in range(len(corpus))]
    if corpus.choices is not None:
        rows = [row[:prompt] for row, prompt in zip(rows, corpus.choices.prompts, strict=True)]
    first, last = _shared(rows), _shared([row[::-1] for row in rows])
    own = [row[first : max(first, len(row) - last)] for row in rows]
    texts = [tokenizer.backend.decode(row.tolist(), skip_special_tokens=True) for row in own]
    texts = [text for text in texts if text.strip()]
    return [Cut(text, encoded.spans) for text, encoded in zip(texts, tokenizer.encode(texts), strict=True)]


def _shared(rows: Sequence[NDArray[np.int32]]) -> int:
    """Tokens that all rows begin with; none of a row alone."""
    if len(rows) < 2:
        return 0
    shortest = min(map(len, rows))
    same = np.all([row[:shortest] == rows[0][:shortest] for row in rows], axis=0)
    return int(np.argmin(same)) if not same.all() else shortest
