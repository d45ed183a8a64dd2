"""Few-shot prompts: the same examples from the training rows in front of each row that is measured.

    plain    A great film.↵Label: good↵↵Dull.↵Label: bad↵↵An odd film.↵Label: | good, bad
    chat     the conversations one after the other, as the chat template writes each

Examples are drawn by content and seed, as many of each label as possible, and are short enough that all of them fit in
front of the longest row. None of them is a row that is measured, a copy of one, or of the same group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from finetune_trainer.random_streams import SHOWN

from .corpus import Corpus, Numbers, Tokens, corpus_of
from .tokenizer import Tokenizer

LONGER = 2
"""A row with its examples is at most so many times as long as data.sequenceLength, which bounds its cost."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """How documents follow each other in one prompt."""

    begin: int | None = None
    """A token that only the first one keeps."""
    end: int | None = None
    """A token that none of them keeps at its end."""
    between: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, data_format: str) -> Joint:
        """A chat template ends turns itself. Elsewhere a blank line is between examples, and not the end of a text."""
        if tokenizer.templates and data_format != "completion":
            return cls(begin=tokenizer.bos)
        between = tokenizer.backend.encode("\n\n", add_special_tokens=False).ids
        return cls(begin=tokenizer.bos, end=tokenizer.eos, between=tuple(between))


def prompted(train: Corpus, measured: Corpus, *, count: int, most: int, seed: int, joint: Joint) -> Corpus | None:
    """The measured rows, each after `count` examples; None where too few training rows are short enough. most: tokens
    of a row with its examples and its longest answer."""
    if not _begins(measured, joint):
        joint = replace(joint, begin=None)
    rows = _without_begin(measured, joint)
    room = (most - _longest(rows)) // count - len(joint.between)
    found = _examples(train, _free(train, measured, room=room), count=count, seed=seed)
    if found is None:
        return None
    texts = [_bare(train.row(int(at)).tokens, joint) for at in found]
    between = np.array(joint.between, np.int32)
    first = [] if joint.begin is None else [np.array([joint.begin], np.int32)]
    return rows.after(np.concatenate([*first, *(part for text in texts for part in (text, between))]))


def _begins(corpus: Corpus, joint: Joint) -> bool:
    """Whether texts begin with the token. Some chat templates begin every turn with it, and then it stays."""
    tokens = corpus.row(0).tokens if len(corpus) else np.zeros(1, np.int32)
    return joint.begin is not None and bool(tokens[0] == joint.begin) and int((tokens == joint.begin).sum()) == 1


def _without_begin(corpus: Corpus, joint: Joint) -> Corpus:
    """No row has it as a target."""
    if joint.begin is None:
        return corpus
    picked = [corpus.row(at) for at in range(len(corpus))]
    choices = corpus.choices and replace(corpus.choices, prompts=corpus.choices.prompts - np.int32(1))
    return corpus_of(
        [row.tokens[1:] for row in picked], [row.trained[1:] for row in picked], corpus.bytes,
        choices=choices, marks=corpus.marks,
    )  # fmt: skip


def _bare(tokens: Tokens, joint: Joint) -> Tokens:
    start = int(joint.begin is not None and tokens[0] == joint.begin)
    end = len(tokens) - int(joint.end is not None and tokens[-1] == joint.end)
    return tokens[start:end]


def _longest(rows: Corpus) -> int:
    if rows.choices is None:
        return int(rows.lengths.max(initial=0))
    return int(rows.choices.prompts.max(initial=0)) + max(map(len, rows.choices.answers))


def _free(train: Corpus, measured: Corpus, *, room: int) -> Numbers:
    """Training rows that may be examples, each content once."""
    fits = train.lengths <= room
    if train.marks is None or measured.marks is None:
        return np.flatnonzero(fits)
    own = np.isin(train.marks.rows, measured.marks.rows) | np.isin(train.marks.groups, measured.marks.groups)
    once = np.zeros(len(train), np.bool_)
    once[np.unique(train.marks.rows, return_index=True)[1]] = True
    return np.flatnonzero(fits & ~own & once)


def _examples(train: Corpus, free: Numbers, *, count: int, seed: int) -> Numbers | None:
    """In the order in which they are shown, in which labels are mixed."""
    if len(free) < count:
        return None
    names = free if train.marks is None else train.marks.rows[free]
    keys = np.array([SHOWN.number(seed, str(name)) for name in names.tolist()], np.uint64)
    order = np.argsort(keys, kind="stable")
    if train.choices is None:
        return free[order[:count]]
    labels = train.choices.gold[free[order]]
    by_label = [order[labels == label].tolist() for label in dict.fromkeys(labels.tolist())]
    turns = [at for turn in zip_longest(*by_label) for at in turn if at is not None]
    chosen = set(turns[:count])
    return free[[at for at in order.tolist() if at in chosen]]
