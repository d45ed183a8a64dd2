"""What counts as an improvement, and when training stops."""

from __future__ import annotations

import pytest

from finetune_api.measurements import Scores
from finetune_trainer.report.record import AttemptRecord
from finetune_trainer.train.state import State


def _after(losses: list[float], *, patience: int | None = 2, min_delta: float = 0.0) -> State:
    state = State()
    for step, loss in enumerate(losses, start=1):
        if state.stopped_early:
            break
        state = state.update(step=step).evaluated(Scores(loss=loss), patience=patience, min_delta=min_delta)
    return state


COURSES = [
    # losses, patience, min_delta: best step, stopped after step
    ([3, 2, 1], 2, 0.0, 3, None),
    ([3, 2, 2.5, 2.5, 2.5], 2, 0.0, 2, 4),
    ([3, 2, 2.5, 1.9, 2.5], 2, 0.0, 4, None),
    ([3, 2.95, 2.94, 2.93], 2, 0.1, 3, 3),
    ([3, 2.95, 2.85, 2.8, 2.7], 2, 0.1, 5, None),
    ([3, 4, 5, 6], None, 0.0, 1, None),
    ([3, 3, 3], 2, 0.0, 1, 3),
]


@pytest.mark.parametrize(("losses", "patience", "min_delta", "best", "stopped"), COURSES)
def test_best_and_patience(
    losses: list[float], patience: int | None, min_delta: float, best: int, stopped: int | None
) -> None:
    state = _after(losses, patience=patience, min_delta=min_delta)
    assert state.best is not None
    assert (state.best.step, state.best.loss) == (best, losses[best - 1])
    assert (state.step if state.stopped_early else None) == stopped


def test_the_reason_is_told_in_words() -> None:
    assert _after([1, 2, 2]).stopped_early == "validation did not improve in 2 evaluations"


def test_a_state_survives_json() -> None:
    state = _after([3, 2]).update(base={"test": Scores(loss=1.5, rows=3)}, trained_tokens=7)
    state = state.begun(AttemptRecord(attempt=2, start_time="2026-01-01T00:00:00Z")).ended("interrupted")
    assert State.model_validate(state.to_json(), strict=False) == state
    assert state.attempts[0].last_step == 2


def test_an_attempt_that_was_open_in_the_checkpoint_came_as_far_as_it() -> None:
    """A killed attempt, or the rung that a ladder's last run continues: it does not say steps 0 to 0."""
    open_one = _after([3, 2]).begun(AttemptRecord(attempt=1))
    first, second = open_one.begun(AttemptRecord(attempt=2, first_step=2)).ended("finished").attempts
    assert (first.first_step, first.last_step, first.outcome) == (0, 2, "continued after step 2")
    assert (second.first_step, second.last_step, second.outcome) == (2, 2, "finished")
