"""How well a model does on held-out rows, row by row: loss, bits per byte, and labels where rows are classifications.

A classification is scored by likelihood, without generating: of all labels' answers after one prompt, the likeliest is
the model's. The answers share the prompt in one row: each is a branch of a tree that sees the prompt and itself, which
costs one pass over the prompt instead of one a label. Where a layer sees less than the whole row (sliding windows,
chunks) our mask would show it more: such rows are scored one answer at a time. Rows are spread over the ranks,
and every rank gets the numbers of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune_api.measurements import Scores
from finetune_trainer.data.corpus import Choices, Corpus, Numbers
from finetune_trainer.data.order import share
from finetune_trainer.data.pack import IGNORED, MicroBatch, idle, micro_batches
from finetune_trainer.parallel.base import Strategy

Array = np.ndarray[Any, Any]
Floats = NDArray[np.float64]


class OfTargets(Protocol):
    """A number for each target, of a model that is frozen for the moment."""

    def target_nats(self, batch: MicroBatch) -> Array:
        """(targets,): of each target of the batch, line by line."""


class Scorer(OfTargets, Protocol):
    """A model, frozen for the moment."""

    @property
    def shares_prompts(self) -> bool:
        """Whether `token_nats` honours a mask."""

    @property
    def shared_within(self) -> int | None:
        """Tokens of a prompt and its longest answer up to which one mask is right for all layers: beyond it some see
        less than the mask allows. None: any number."""

    def token_nats(self, tokens: Array, positions: Array, targets: Array, mask: Array | None = None) -> Array:
        """Of each token, 0 without a target; mask: (rows, length, length), True = sees."""


@dataclass(frozen=True)
class Layout:
    """How rows become rectangles; see data.pack."""

    max_tokens: int
    sequence_length: int
    packing: bool
    pad_id: int

    def batches(self, corpus: Corpus, rows: Numbers) -> list[MicroBatch]:
        return micro_batches(
            corpus,
            rows,
            max_tokens=self.max_tokens,
            sequence_length=self.sequence_length,
            packing=self.packing,
            pad_id=self.pad_id,
        )


Part = Callable[[], None]
"""A piece of work, one pass through the model, which writes down what it finds."""


class Stopped(Exception):
    """Some rank was asked to stop: there is no result."""


@dataclass(frozen=True)
class Measured:
    """One data set, one model."""

    scores: Scores
    nats: Floats
    """(rows,): summed over each row's targets."""
    tokens: Numbers
    """(rows,): how many targets these are."""
    labels: Floats | None = None
    """(rows, labels): of each label's answer, where rows are classifications."""


def evaluate(
    scorer: Scorer, corpus: Corpus, *, layout: Layout, strategy: Strategy, going_on: Callable[[], bool]
) -> Measured:
    """Collective: all ranks call it and get the same numbers. `going_on` is asked between micro-batches; when it says
    no on any rank, every rank raises Stopped."""
    rows = _Rows.of(corpus)
    parts = list(_parts(scorer, corpus, _share(corpus, strategy), layout, rows))
    stopped = _stopped(parts, _loss_part(scorer, idle(), rows), strategy, going_on)
    return gathered(corpus, rows.nats, rows.labels, stopped=stopped, strategy=strategy)


def summed_by_row(
    scorer: OfTargets, corpus: Corpus, *, layout: Layout, strategy: Strategy, going_on: Callable[[], bool]
) -> Floats:
    """(rows,): the numbers of each row's targets, summed. Collective, as `evaluate` is."""
    plain = replace(corpus, choices=None)
    rows = _Rows.of(plain)
    parts = [_loss_part(scorer, batch, rows) for batch in layout.batches(plain, _share(plain, strategy))]
    stopped = _stopped(parts, _loss_part(scorer, idle(), rows), strategy, going_on)
    return gathered(plain, rows.nats, None, stopped=stopped, strategy=strategy).nats


def _share(corpus: Corpus, strategy: Strategy) -> Numbers:
    place = strategy.place
    return share(np.arange(len(corpus)), corpus.lengths, rank=place.rank, world_size=place.world_size)


def _stopped(parts: list[Part], spare: Part, strategy: Strategy, going_on: Callable[[], bool]) -> bool:
    """Does the parts, as many as every other rank. Returns whether a rank was asked to stop before all were done."""
    for part in strategy.in_step(parts, spare):
        if strategy.agreed(not going_on()):
            return True
        part()
    return False


def gathered(corpus: Corpus, nats: Floats, labels: Floats | None, *, stopped: bool, strategy: Strategy) -> Measured:
    """Collective: the numbers of all rows out of those of each rank's, which has zeros in the place of all others.
    Stopped on all ranks if `stopped` on one."""
    flat = np.concatenate([[float(stopped)], nats, np.zeros(0) if labels is None else labels.reshape(-1)])
    for start in range(0, len(flat), _AT_ONCE):
        flat[start : start + _AT_ONCE] = strategy.sum_counters(flat[start : start + _AT_ONCE].tolist())
        if flat[0]:
            raise Stopped
    nats = flat[1 : len(nats) + 1]
    labels = None if labels is None else flat[len(nats) + 1 :].reshape(labels.shape)
    return Measured(scores_of(corpus, nats, labels), nats, corpus.targets, labels)


def scores_of(corpus: Corpus, nats: Floats, labels: Floats | None) -> Scores:
    """Means over the data set."""
    total, tokens, size = float(nats.sum()), corpus.trained_tokens, int(corpus.bytes.sum())
    choices = corpus.choices
    return Scores(
        loss=total / max(1, tokens),
        bits_per_byte=total / (math.log(2) * size) if size else None,
        accuracy=float((likeliest(corpus, labels) == choices.gold).mean()) if choices and labels is not None else None,
        rows=len(corpus),
        tokens=tokens,
    )


def likeliest(corpus: Corpus, labels: Floats) -> Numbers:
    """(rows,): the label of the fewest nats. Of several that cost the same, which bf16 makes common, the row's digest
    chooses: the first one would favour a label for its place in the list."""
    known = np.where(np.isnan(labels), np.inf, labels)
    best = known == known.min(axis=1, keepdims=True)
    found: Numbers = best.argmax(axis=1)
    digests = np.arange(len(labels)) if corpus.marks is None else corpus.marks.rows
    for row in np.flatnonzero(best.sum(axis=1) > 1):
        tied = np.flatnonzero(best[row])
        found[row] = tied[int(digests[row]) % len(tied)]
    return found


_ROWS_AT_ONCE = 64
"""Between two signs of life."""

_AT_ONCE = 1 << 16
"""Numbers that ranks sum at once."""


@dataclass(frozen=True)
class _Rows:
    """What this rank has found; zero in the place of the others' rows."""

    nats: Floats
    labels: Floats | None

    @classmethod
    def of(cls, corpus: Corpus) -> _Rows:
        choices = corpus.choices
        labels = np.zeros((len(corpus), len(choices.answers))) if choices else None
        return cls(np.zeros(len(corpus)), labels)


def _parts(scorer: Scorer, corpus: Corpus, mine: Numbers, layout: Layout, rows: _Rows) -> Iterator[Part]:
    choices = corpus.choices
    if choices and _answers_are_all(corpus, choices):
        shared = _shared(scorer, choices, mine)
        for group in _tree_groups(choices, mine[shared], layout):
            yield _tree_part(scorer, corpus, choices, group, rows)
        mine = mine[~shared]
    yield from (_loss_part(scorer, batch, rows) for batch in layout.batches(corpus, mine))
    if choices and len(mine):
        yield from _separate_parts(scorer, corpus, mine, layout, rows)


def _loss_part(scorer: OfTargets, batch: MicroBatch, rows: _Rows) -> Part:
    def work() -> None:
        rows.nats[batch.documents] = _by_document(scorer, batch)

    return work


def _by_document(scorer: OfTargets, batch: MicroBatch) -> Floats:
    """(documents,): nats of each."""
    segments = batch.segments[batch.targets != IGNORED]
    found = np.bincount(segments, weights=scorer.target_nats(batch), minlength=len(batch.documents))
    return found.astype(np.float64, copy=False)


def _answers_are_all(corpus: Corpus, choices: Choices) -> bool:
    """Whether what is trained is just the right answer, so that its branch is the row's loss as well."""
    return corpus.trained_tokens == sum(len(choices.answers[gold]) for gold in choices.gold)


def _shared(scorer: Scorer, choices: Choices, rows: Numbers) -> NDArray[np.bool_]:
    """(rows,): whose answers may share a prompt."""
    if not scorer.shares_prompts:
        return np.zeros(len(rows), np.bool_)
    if scorer.shared_within is None:
        return np.ones(len(rows), np.bool_)
    longest = max(len(answer) for answer in choices.answers)
    return np.asarray(choices.prompts[rows] + longest <= scorer.shared_within)


def _tree_groups(choices: Choices, mine: Numbers, layout: Layout) -> Iterator[Numbers]:
    """Rows of similar length, as many as fit the budget."""
    branches = sum(len(answer) for answer in choices.answers)
    order = mine[np.argsort(-choices.prompts[mine], kind="stable")]
    start = 0
    while start < len(order):
        length = int(choices.prompts[order[start]]) - 1 + branches
        count = max(1, layout.max_tokens // length)
        yield order[start : start + count]
        start += count


def _tree_part(scorer: Scorer, corpus: Corpus, choices: Choices, group: Numbers, rows: _Rows) -> Part:
    def work() -> None:
        assert rows.labels is not None
        nats = answer_nats(scorer, [corpus.row(int(i)).tokens[: choices.prompts[i]] for i in group], choices.answers)
        rows.labels[group] = nats
        rows.nats[group] = nats[np.arange(len(group)), choices.gold[group]]

    return work


def answer_nats(scorer: Scorer, prompts: list[Array], answers: tuple[Array, ...]) -> Array:
    """(prompts, answers): nats of each answer after each prompt, all answers of a prompt in one row.

    A branch begins with a copy of the prompt's last token, which predicts the branch's first: prompt `a b c` with
    answers `x y` and `z` is the row `a b | c x | c`, positions `0 1 | 2 3 | 2`, targets `- - | x y | z`.
    """
    owner = np.repeat(np.arange(len(answers)), [len(answer) for answer in answers])
    within = np.concatenate([np.arange(len(answer)) for answer in answers])
    targets_of_branches = np.concatenate(answers).astype(np.int64)
    length = max(len(prompt) for prompt in prompts) - 1 + len(owner)
    shape = (len(prompts), length)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets = np.full(shape, IGNORED, np.int64)
    mask = np.tril(np.ones((length, length), np.bool_))[None].repeat(len(prompts), axis=0)
    for line, prompt in enumerate(prompts):
        shared = len(prompt) - 1
        here = slice(shared, shared + len(owner))
        tokens[line, :shared] = prompt[:-1]
        tokens[line, here] = np.where(within == 0, prompt[-1], np.roll(targets_of_branches, 1))
        positions[line, :shared] = np.arange(shared)
        positions[line, here] = shared + within
        targets[line, here] = targets_of_branches
        mask[line, here, here] &= owner[:, None] == owner[None, :]
    nats = scorer.token_nats(tokens, positions, targets, mask)
    out = np.zeros((len(prompts), len(answers)))
    for line, prompt in enumerate(prompts):
        here = slice(len(prompt) - 1, len(prompt) - 1 + len(owner))
        out[line] = np.bincount(owner, weights=nats[line, here], minlength=len(answers))
    return out


def choice_nats(scorer: Scorer, corpus: Corpus, layout: Layout) -> Iterator[tuple[Numbers, Array]]:
    """(rows, their nats (rows, labels) of each label's answer) piece by piece, of a corpus of classifications."""
    choices = corpus.choices
    assert choices is not None
    every_row = np.arange(len(corpus))
    shared = _shared(scorer, choices, every_row)
    for rows in _tree_groups(choices, every_row[shared], layout):
        prompts = [corpus.row(int(i)).tokens[: choices.prompts[i]] for i in rows]
        yield rows, answer_nats(scorer, prompts, choices.answers)
    alone = every_row[~shared]
    for start in range(0, len(alone), _ROWS_AT_ONCE):
        rows = alone[start : start + _ROWS_AT_ONCE]
        every = corpus.take(rows).with_every_answer()
        nats = np.zeros(len(every))
        for batch in layout.batches(every, np.arange(len(every))):
            nats[batch.documents] = _by_document(scorer, batch)
        yield rows, nats.reshape(len(rows), -1)


def _separate_parts(scorer: Scorer, corpus: Corpus, mine: Numbers, layout: Layout, rows: _Rows) -> Iterator[Part]:
    """Each answer after a prompt of its own: for models that take no mask, and rows longer than a window."""
    assert rows.labels is not None
    labels, every = rows.labels, corpus.take(mine).with_every_answer()
    count = labels.shape[1]

    def score(batch: MicroBatch) -> Part:
        def work() -> None:
            labels[mine[batch.documents // count], batch.documents % count] = _by_document(scorer, batch)

        return work

    yield from (score(batch) for batch in layout.batches(every, np.arange(len(every))))
