"""The sequence of tasks in an artifact's manifest: how it grows, what is read of it, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.measurements import MOST_TASKS, Continual, Evaluation, Scores
from finetune_api.results import packed, unpacked
from finetune_trainer.store.sequence import HeldOut, Sequence, Task, unused


def scores(accuracy: float | None, loss: float = 1.0, bits: float | None = 2.0) -> Scores:
    return Scores(loss=loss, bits_per_byte=bits, accuracy=accuracy)


def task(name: str) -> Task:
    test = HeldOut(uri=f"s3://corp/{name}/test.jsonl", format="completion", sequence_length=128)
    return Task(name=name, artifact=f"s3://corp/models/{name}", test=test)


def first(accuracy: float | None = 0.8, **more: Any) -> Sequence:
    return Sequence(tasks=(task("one"),), scores=((scores(accuracy, **more),),), base=(None,))


def three() -> Sequence:
    """The matrix worked out by hand in test_statistics_continual, without what no run measures."""
    two = first().extended(task("two"), after=(scores(0.9), scores(0.7)), before=scores(0.3), base=scores(0.25))
    return two.extended(
        task("three"), after=(scores(0.6), scores(0.5), scores(0.9)), before=scores(0.2), base=scores(0.1)
    )


def test_a_sequence_of_three_has_the_numbers_of_its_matrix() -> None:
    sequence = three()
    assert sequence.names == ("one", "two", "three")
    assert [[None if each is None else each.accuracy for each in row] for row in sequence.scores] == [
        [0.8, 0.3, None],
        [0.9, 0.7, 0.2],
        [0.6, 0.5, 0.9],
    ]
    found = sequence.judged()
    assert (found.tasks, found.metric) == (3, "accuracy")
    assert found.acc == pytest.approx(2 / 3)
    assert found.bwt == pytest.approx(-0.2)
    assert found.fwt == pytest.approx(0.075)
    assert found.forgetting == pytest.approx(0.25)
    assert found.told() == (
        "3 tasks in sequence by accuracy: mean 0.6667, backward transfer -0.2, forward transfer +0.075, forgetting 0.25"
    )


def test_a_loss_that_rose_is_negative_backward_transfer() -> None:
    """The mean stays a loss; whatever is a transfer is better if it is more."""
    before = first(None, bits=None, loss=1.0)
    found = before.extended(
        task("two"),
        after=(scores(None, bits=None, loss=1.5), scores(None, bits=None, loss=0.5)),
        before=scores(None, bits=None, loss=2.0),
        base=scores(None, bits=None, loss=3.0),
    ).judged()
    assert found.metric == "loss"
    assert (found.acc, found.bwt, found.fwt, found.forgetting) == (1.0, -0.5, 1.0, 0.5)


def test_the_metric_is_one_that_all_tasks_have() -> None:
    assert first().metric == "accuracy"
    mixed = first().extended(task("two"), after=(scores(0.9), scores(None)), before=scores(None))
    assert mixed.metric == "bitsPerByte"
    none = first().extended(task("two"), after=(scores(0.9), scores(None, bits=None)))
    assert none.metric == "loss"


def test_without_the_original_base_there_is_no_forward_transfer() -> None:
    found = first().extended(task("two"), after=(scores(0.9), scores(0.7)), before=scores(0.3)).judged()
    assert found.fwt is None
    assert found.bwt == pytest.approx(0.1)


def test_a_job_that_runs_twice_is_two_tasks() -> None:
    again = first().extended(task("one"), after=(scores(0.9), scores(0.7)))
    assert again.names == ("one", "one-2")
    assert len(unused("a" * 63, ("a" * 63,))) == 62


def test_what_is_written_is_what_is_read() -> None:
    sequence = three()
    assert Sequence.model_validate_json(sequence.model_dump_json(by_alias=True)) == sequence
    told = json.loads(json.dumps(sequence.to_json()))
    assert Sequence.model_validate_json(json.dumps(told)) == sequence


def test_status_carries_the_numbers_through_a_termination_message() -> None:
    given = Evaluation(continual=Continual(tasks=3, metric="accuracy", acc=0.66667, bwt=-0.2, forgetting=0.25))
    assert unpacked(packed(given)).continual == Continual(
        tasks=3, metric="accuracy", acc=0.6667, bwt=-0.2, forgetting=0.25
    )


DAMAGED: dict[str, Any] = {
    "a row is missing": lambda told: told["scores"].pop(),
    "a row is short": lambda told: told["scores"][1].pop(),
    "a score on the diagonal is missing": lambda told: told["scores"][1].__setitem__(1, None),
    "base is short": lambda told: told["base"].pop(),
    "a loss is no number": lambda told: told["scores"][0][0].update(loss="high"),
    "two tasks have one name": lambda told: told["tasks"][1].update(name="one"),
    "a name that could leave a folder": lambda told: told["tasks"][1].update(name="../two"),
    "a URI of another scheme": lambda told: told["tasks"][0]["test"].update(uri="http://corp/test.jsonl"),
    "more tasks than are allowed": lambda told: told.update(tasks=told["tasks"] * MOST_TASKS),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_sequence_is_refused(damage: Any) -> None:
    told = json.loads(three().model_dump_json(by_alias=True))
    damage(told)
    with pytest.raises(ValidationError):
        Sequence.model_validate_json(json.dumps(told))
