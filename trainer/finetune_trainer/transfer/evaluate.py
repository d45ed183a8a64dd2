"""How well a model does on held-out rows: loss, bits per byte, and accuracy where rows are classifications.

A classification is scored by likelihood, without generating: of all labels' answers after one prompt, the likeliest is
the model's. The answers share the prompt in one row: each is a branch of a tree that sees the prompt and itself, which
costs one pass over the prompt instead of one a label. Rows are spread over the ranks, and sums are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat

import numpy as np

from finetune_api.status import Scores
from finetune_trainer.data.corpus import Choices, Corpus, Numbers
from finetune_trainer.data.order import share
from finetune_trainer.data.pack import IGNORED, PADDING, MicroBatch, idle, micro_batches
from finetune_trainer.parallel.base import Strategy

Array = np.ndarray[Any, Any]


class Scorer(Protocol):
    """A model, frozen for the moment."""

    @property
    def shares_prompts(self) -> bool:
        """Whether `token_nats` honours a mask."""

    def nats(self, batch: MicroBatch) -> SupportsFloat:
        """Summed over the batch's targets."""

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


class Stopped(Exception):
    """Some rank was asked to stop: there is no result."""


@dataclass
class _Sums:
    nats: float = 0.0
    tokens: float = 0.0
    bytes: float = 0.0
    rows: float = 0.0
    right: float = 0.0
    stopped: float = 0.0


def evaluate(
    scorer: Scorer, corpus: Corpus, *, layout: Layout, strategy: Strategy, going_on: Callable[[], bool]
) -> Scores:
    """Collective: all ranks call it and get the same scores. `going_on` is asked between micro-batches; when it says no
    on any rank, every rank raises Stopped."""
    mine = share(np.arange(len(corpus)), corpus.lengths, rank=strategy.place.rank, world_size=strategy.place.world_size)
    sums = _Sums(rows=len(mine), bytes=float(corpus.bytes[mine].sum()))
    for step in strategy.in_step(list(_parts(scorer, corpus, mine, layout)), _loss_part(scorer, idle())):
        if strategy.agreed(not going_on()):
            sums.stopped = 1.0
            break
        nats, tokens, right = step()
        sums.nats, sums.tokens, sums.right = sums.nats + nats, sums.tokens + tokens, sums.right + right
    total = _Sums(*strategy.sum_counters(list(vars(sums).values())))
    if total.stopped:
        raise Stopped
    return Scores(
        loss=total.nats / max(1.0, total.tokens),
        bits_per_byte=total.nats / (math.log(2) * total.bytes) if total.bytes else None,
        accuracy=total.right / max(1.0, total.rows) if corpus.choices else None,
        rows=int(total.rows),
        tokens=int(total.tokens),
    )


_ROWS_AT_ONCE = 64
"""Between two signs of life."""

Part = Callable[[], tuple[float, int, int]]
"""A piece of work, one pass through the model: (nats, trained tokens, rows answered right)."""


def _parts(scorer: Scorer, corpus: Corpus, mine: Numbers, layout: Layout) -> Iterator[Part]:
    choices = corpus.choices
    if choices and scorer.shares_prompts and _answers_are_all(corpus, choices):
        yield from (_tree_part(scorer, corpus, choices, rows) for rows in _tree_groups(choices, mine, layout))
        return
    yield from (_loss_part(scorer, batch) for batch in layout.batches(corpus, mine))
    if choices:
        yield from _separate_parts(scorer, corpus.take(mine), layout)


def _loss_part(scorer: Scorer, batch: MicroBatch) -> Part:
    return lambda: (float(scorer.nats(batch)), batch.target_count, 0)


def _answers_are_all(corpus: Corpus, choices: Choices) -> bool:
    """Whether what is trained is just the right answer, so that its branch is the row's loss as well."""
    return corpus.trained_tokens == sum(len(choices.answers[gold]) for gold in choices.gold)


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


def _tree_part(scorer: Scorer, corpus: Corpus, choices: Choices, rows: Numbers) -> Part:
    def work() -> tuple[float, int, int]:
        nats = answer_nats(scorer, [corpus.row(int(i)).tokens[: choices.prompts[i]] for i in rows], choices.answers)
        gold = choices.gold[rows]
        own = nats[np.arange(len(rows)), gold]
        tokens = sum(len(choices.answers[label]) for label in gold)
        return float(own.sum()), tokens, int((nats.argmin(axis=1) == gold).sum())

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
    if scorer.shares_prompts:
        for rows in _tree_groups(choices, np.arange(len(corpus)), layout):
            prompts = [corpus.row(int(i)).tokens[: choices.prompts[i]] for i in rows]
            yield rows, answer_nats(scorer, prompts, choices.answers)
        return
    for start in range(0, len(corpus), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(corpus)))
        every = corpus.take(rows).with_every_answer()
        nats = np.zeros(len(every))
        for batch in layout.batches(every, np.arange(len(every))):
            each, inside = scorer.token_nats(batch.tokens, batch.positions, batch.targets), batch.segments != PADDING
            nats[batch.documents] = np.bincount(
                batch.segments[inside], weights=each[inside], minlength=len(batch.documents)
            )
        yield rows, nats.reshape(len(rows), -1)


def _separate_parts(scorer: Scorer, corpus: Corpus, layout: Layout) -> Iterator[Part]:
    """Each answer behind a prompt of its own: for models that take no mask. The last pass knows who was right."""
    choices = corpus.choices
    assert choices is not None
    every = corpus.with_every_answer()
    nats = np.zeros(len(every))

    batches = layout.batches(every, np.arange(len(every)))

    def score(index: int, batch: MicroBatch) -> Part:
        def work() -> tuple[float, int, int]:
            each = scorer.token_nats(batch.tokens, batch.positions, batch.targets)
            inside = batch.segments != PADDING
            nats[batch.documents] = np.bincount(
                batch.segments[inside], weights=each[inside], minlength=len(batch.documents)
            )
            if index < len(batches) - 1:
                return 0.0, 0, 0
            return 0.0, 0, int((nats.reshape(len(corpus), -1).argmin(axis=1) == choices.gold).sum())

        return work

    yield from (score(index, batch) for index, batch in enumerate(batches))
