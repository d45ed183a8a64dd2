"""Held-out rows as prompts: everything before the last answer of a row, which is the reference.

A row of plain text has no answer: its beginning is the prompt, half of it but at most 32 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from finetune_trainer.data.corpus import Corpus, CorpusRow, Tokens
from finetune_trainer.data.sample import drawn_part
from finetune_trainer.transfer.evidence import digests

MOST_OF_A_TEXT = 32
"""Tokens."""

Name = Literal["test", "validation"]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """In an order that depends on the content of the rows alone."""

    name: Name
    """Of their data set."""
    tokens: tuple[Tokens, ...]
    references: tuple[Tokens, ...]
    """Without the tokens that end an answer."""
    rows: tuple[str, ...]
    """Digest of each row."""
    groups: tuple[str, ...]
    left_out: int = 0
    """Rows whose prompt leaves no space for an answer in the model's context, or without an answer."""
    spelled: tuple[Tokens, ...] | None = None
    """The same texts in the tokens of the base model, where it has others."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def of_base(self) -> tuple[Tokens, ...]:
        return self.tokens if self.spelled is None else self.spelled


def prompts_of(
    corpora: Mapping[str, Corpus],
    *,
    most: int,
    seed: int,
    stops: Collection[int],
    context: int | None,
    new: int,
    spelled: Callable[[Tokens], Tokens] | None = None,
) -> Prompts | None:
    """Of the test rows, else of the validation rows; None where there are none. context: tokens that the model reads;
    new: those of an answer; spelled: a text in the tokens of the base model, never fewer."""
    name = next((name for name in ("test", "validation") if name in corpora and len(corpora[name])), None)
    if name is None:
        return None
    corpus = drawn_part(corpora[name], most, seed)
    rows, groups = digests(corpus)
    found = []
    for index in np.argsort(np.array(rows), kind="stable"):
        row = corpus.row(int(index))
        start, end = _answer(row)
        read = row.tokens[:start] if spelled is None else spelled(row.tokens[:start])
        if 0 < start < end and (context is None or len(read) + new <= context):
            reference = row.tokens[start:end]
            while len(reference) and int(reference[-1]) in stops:
                reference = reference[:-1]
            found.append((row.tokens[:start], reference, rows[index], groups[index], read))
    return Prompts(
        name=cast(Name, name),
        tokens=tuple(each[0] for each in found),
        references=tuple(each[1] for each in found),
        rows=tuple(each[2] for each in found),
        groups=tuple(each[3] for each in found),
        left_out=len(corpus) - len(found),
        spelled=None if spelled is None else tuple(each[4] for each in found),
    )


def _answer(row: CorpusRow) -> tuple[int, int]:
    """(first token, the one after the last) of the last passage that is trained; (0, 0) without one."""
    trained = np.flatnonzero(row.trained)
    if not len(trained):
        return 0, 0
    breaks = np.flatnonzero(np.diff(trained) > 1)
    start, end = int(trained[breaks[-1] + 1] if len(breaks) else trained[0]), int(trained[-1]) + 1
    return (max(start, min(MOST_OF_A_TEXT, end // 2)), end) if start <= 1 else (start, end)
