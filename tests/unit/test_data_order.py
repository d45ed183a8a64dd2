"""Row order: a function of the step, complete, and the same for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.order import share, step_rows, steps_per_epoch, total_steps

SIZES = st.integers(1, 200)
BATCHES = st.integers(1, 50)


@given(rows=SIZES, batch=BATCHES, seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 5))
def test_the_steps_of_an_epoch_see_each_row_once(rows: int, batch: int, seed: int, epoch: int) -> None:
    steps = steps_per_epoch(rows, batch_size=batch)
    seen = [step_rows(rows, batch_size=batch, seed=seed, step=epoch * steps + step) for step in range(steps)]
    assert sorted(np.concatenate(seen)) == list(range(rows))
    assert all(len(part) == batch for part in seen[:-1])


def test_the_order_is_the_one_that_earlier_runs_saw() -> None:
    """A run must find it again in the next release: this may never change."""
    assert step_rows(10, batch_size=4, seed=1, step=0).tolist() == [9, 2, 4, 7]
    assert step_rows(10, batch_size=4, seed=1, step=2).tolist() == [3, 1]
    assert step_rows(10, batch_size=4, seed=1, step=3).tolist() == [5, 6, 3, 0]


def test_seeds_and_epochs_differ() -> None:
    orders = {
        tuple(step_rows(50, batch_size=50, seed=seed, step=epoch).tolist()) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_nobody_can_change_the_order_that_others_share() -> None:
    with pytest.raises(ValueError, match="read-only"):
        step_rows(10, batch_size=4, seed=1, step=0)[0] = 3


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "most", "steps"),
    [(10, 4, 1, None, 3), (10, 4, 3, None, 9), (8, 4, 2, None, 4), (10, 4, 3, 5, 5), (1, 64, 1, 9, 1)],
)
def test_total_steps(rows: int, batch: int, epochs: int, most: int | None, steps: int) -> None:
    assert total_steps(rows, batch_size=batch, epochs=epochs, max_steps=most) == steps


@given(lengths=st.lists(st.integers(1, 4096), max_size=60), world=st.integers(1, 9))
def test_ranks_share_a_step_without_gaps_and_about_evenly(lengths: list[int], world: int) -> None:
    rows = np.arange(len(lengths))[::-1] + 100
    sizes = np.array(lengths, np.int64)
    parts = [share(rows, sizes, rank=rank, world_size=world) for rank in range(world)]
    assert sorted(np.concatenate(parts)) == sorted(rows)
    by_row = dict(zip(rows.tolist(), lengths, strict=True))
    loads = [sum(by_row[row] for row in part.tolist()) for part in parts]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_the_example_of_the_docstring() -> None:
    rows, lengths = np.array([10, 11, 12, 13]), np.array([5, 4, 3, 3])
    assert share(rows, lengths, rank=0, world_size=2).tolist() == [10, 13]
    assert share(rows, lengths, rank=1, world_size=2).tolist() == [11, 12]


def test_more_ranks_than_rows_leave_some_without_any() -> None:
    assert [len(share(np.array([7]), np.array([3]), rank=rank, world_size=3)) for rank in range(3)] == [1, 0, 0]
