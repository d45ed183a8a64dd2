"""The rows of a run as the base model's own tokenizer cuts them, so that both models are measured on the same text.

What is trained of a row depends on the tokenizer: a long text is cut into windows by tokens, the first token of a text
is never trained, and a long row may be dropped or truncated. So a row is what the base model's tokenizer makes of it
where that is the same text, else the run's own tokens with each new one replaced by the tokens that it stands for:

    run             ST|EMI |in|ferior wall        base, by its own tokenizer     S|T|EMI |in|fer|ior| wall
    both trained on    EMI  in ferior wall        here                           ST -> S|T, of which neither is trained

Bits per byte of the two models are then of the same bytes, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune_trainer.data.corpus import Choices, Corpus, CorpusRow, Numbers, Tokens, corpus_of

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Pieces:
    """The tokens of the base model that each token of the run stands for: its own, of a token that both have."""

    flat: Tokens
    counts: Numbers
    """(vocabulary,)"""

    @classmethod
    def of(cls, first: int, pieces: Sequence[Sequence[int]]) -> Pieces:
        """`pieces`: of the new tokens, whose ids are `first` and those after it."""
        new = [np.array(each, np.int32) for each in pieces]
        counts = np.concatenate([np.ones(first, np.int64), np.array([len(each) for each in new], np.int64)])
        return cls(np.concatenate([np.arange(first, dtype=np.int32), *new]), counts)

    def spelled(self, tokens: Tokens) -> Tokens:
        counts = self.counts[tokens]
        ends = np.cumsum(counts)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        starts = np.cumsum(self.counts) - self.counts
        found: Tokens = self.flat[np.repeat(starts[tokens], counts) + within]
        return found

    def spelled_corpus(self, corpus: Corpus) -> Corpus:
        """The same rows; what is trained is the same text."""
        counts = self.counts[corpus.tokens]
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        choices = corpus.choices
        if choices is not None:
            starts = corpus.offsets[:-1]
            choices = Choices(
                answers=tuple(self.spelled(answer) for answer in choices.answers),
                prompts=(before[starts + choices.prompts] - before[starts]).astype(np.int32),
                gold=choices.gold,
            )
        return replace(
            corpus,
            tokens=self.spelled(corpus.tokens),
            offsets=before[corpus.offsets],
            trained=np.repeat(corpus.trained, counts),
            choices=choices,
        )


def base_rows(corpus: Corpus, own: Corpus | None, pieces: Pieces, decode: Decode) -> Corpus:
    """Row by row those of `corpus`. own: the same data set by the base model's tokenizer, its rows in any order;
    decode: from its tokens to text."""
    found = pieces.spelled_corpus(corpus)
    if own is None or own.marks is None or found.marks is None:
        return found
    places = {digest: place for place, digest in enumerate(own.marks.rows.tolist())}
    taken = {}
    for row, digest in enumerate(found.marks.rows.tolist()):
        place = places.get(digest)
        if place is not None and own.bytes[place] == found.bytes[row] and _other(own, place, found.row(row), decode):
            taken[row] = place
    return _with(found, own, taken) if taken else found


def _other(own: Corpus, place: int, row: CorpusRow, decode: Decode) -> bool:
    """Whether the base model's tokenizer cuts the text of the row into other tokens."""
    mine = own.row(place)
    if np.array_equal(mine.tokens, row.tokens):
        return False
    return decode(mine.tokens.tolist()) == decode(row.tokens.tolist())


def _with(found: Corpus, own: Corpus, taken: dict[int, int]) -> Corpus:
    """With rows of `own` in the place of some."""
    rows = [own.row(taken[row]) if row in taken else found.row(row) for row in range(len(found))]
    choices = found.choices
    if choices is not None and own.choices is not None:
        prompts = choices.prompts.copy()
        prompts[list(taken)] = own.choices.prompts[list(taken.values())]
        choices = Choices(own.choices.answers, prompts, choices.gold)
    made = corpus_of(
        [row.tokens for row in rows], [row.trained for row in rows], found.bytes, choices=choices, marks=found.marks
    )
    return replace(made, before=found.before)
