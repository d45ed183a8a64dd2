"""The base model with examples in its prompt, measured in the first run of a ladder that has rows to decide on."""

from __future__ import annotations

from dataclasses import replace

from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.few_shot import LONGER, Joint, prompted
from finetune_trainer.data.halves import select_half
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.planning.positions import most_positions
from finetune_trainer.transfer.evaluate import Measured
from finetune_trainer.transfer.evidence import Subject

from .setup import Setup

NO_PROMPT = "text"
"""The format whose rows have neither a label nor a prompt."""


def few_shot_rows(setup: Setup) -> Corpus | None:
    """The rows that decide between rungs, each after the examples; None where it is not asked for or not possible."""
    count, data = setup.plan.few_shot, setup.data
    measured = data.fold if setup.fold is not None else select_half(data.validation)
    known = data.statistics.format
    if not count or measured is None or not len(measured) or known == NO_PROMPT:
        return None
    limits = [LONGER * setup.spec.data.sequence_length, most_positions(setup.local.path)]
    joint = Joint.of(Tokenizer.load(setup.local.path), known)
    found = prompted(
        data.train, measured, count=count, most=min(each for each in limits if each is not None),
        seed=setup.spec.training.seed, joint=joint,
    )  # fmt: skip
    say = setup.trainer.reporter.say
    if found is None:
        say(
            f"few-shot: not measured, because fewer than {count} training rows are short enough for a prompt of {count}"
        )
        return None
    say(f"few-shot: the base model reads {count} training rows ({len(found.before)} tokens) before each measured row")
    return found


def with_few_shot(subjects: tuple[Subject, ...], rows: Corpus | None, measured: Measured | None) -> tuple[Subject, ...]:
    """Next to the other two models on the rows that decide between rungs."""
    if rows is None or measured is None:
        return subjects
    return tuple(replace(each, prompted=(rows, measured)) if each.kind == "validation" else each for each in subjects)
