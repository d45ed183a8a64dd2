"""A run that continues from an earlier artifact: what it measures besides, and the sequence that it adds to."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.measurements import Scores
from finetune_trainer.methods.base import Continues
from finetune_trainer.store.sequence import Task, held_out
from finetune_trainer.transfer.evaluate import Measured
from finetune_trainer.transfer.evidence import Evidence, Subject

from .setup import Setup
from .state import State

_ORIGINAL = "original/test"
"""Among the scores of the base model: the original one, without the earlier adapter, on this task's test data."""


def scores_of_original(setup: Setup) -> dict[str, Scores]:
    """What forward transfer is measured from. Empty where the original base model is not at hand: a run that starts
    from a whole model has not loaded it. Collective."""
    attached, test = setup.attached, setup.data.test
    if test is None or not isinstance(attached, Continues) or not attached.continues:
        return {}
    with attached.as_original():
        return {_ORIGINAL: setup.trainer.measure_base(test).scores}


def in_sequence(evidence: Evidence, setup: Setup, state: State, subjects: tuple[Subject, ...]) -> Evidence:
    """With the earlier artifact's sequence, and with this task in it if it has test data. Unchanged for a run that is
    the first of its sequence."""
    earlier = setup.earlier
    if earlier is None or earlier.sequence is None:
        return evidence
    test = held_out(setup.spec, setup.data.labels)
    tuned = {(each.kind, each.name): each.tuned.scores for each in subjects if each.tuned is not None}
    own = next((each for each in subjects if each.kind == "test"), None)
    if test is None or own is None or own.tuned is None:
        return replace(evidence, sequence=earlier.sequence)
    after = (*(tuned["task", name] for name in earlier.sequence.names), own.tuned.scores)
    before = own.base.scores if isinstance(own.base, Measured) else own.base
    task = Task(name=setup.plan.job.name, artifact=setup.spec.output.uri, test=test)
    original = (state.base or {}).get(_ORIGINAL)
    sequence = earlier.sequence.extended(task, after=after, before=before, base=original)
    return replace(evidence, sequence=sequence, continual=sequence.judged())
