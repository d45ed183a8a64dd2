"""Row order: a function of the step, complete, and the same for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.order import Mixture, share, step_rows, steps_per_epoch, tempered, total_steps

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


@pytest.mark.parametrize(
    ("temperature", "seen"), [(1, [100, 900]), (2, [250, 750]), (100, [495, 505]), (1e9, [500, 500])]
)
def test_a_temperature_makes_sources_more_equal_and_an_epoch_no_longer(temperature: float, seen: list[int]) -> None:
    mixture = Mixture((100, 900), tempered((100, 900), (1, 1), temperature))
    epoch = mixture.epoch(seed=1, epoch=0)
    assert np.bincount(epoch >= 100).tolist() == pytest.approx(seen, abs=1)
    assert mixture.per_epoch == pytest.approx(1000, abs=2)


def test_a_weight_counts_next_to_a_temperature_and_a_source_without_rows_has_no_share() -> None:
    weights = tempered((100, 0, 900), (3, 1, 1), 2)
    assert weights[0] * 100 + weights[2] * 900 == pytest.approx(1200)
    assert weights[0] * 100 / (weights[2] * 900) == pytest.approx(3 * 10 / 30)


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
    [
        (10, 4, 1, None, 3),
        (10, 4, 3, None, 9),
        (8, 4, 2, None, 4),
        (10, 4, 3, 5, 5),
        (1, 64, 1, 9, 9),
        (100, 8, 1, 20, 20),
        (92, 8, 3, 20, 20),
        (0, 8, 3, 20, 0),
    ],
)
def test_max_steps_replaces_epochs_and_passes_over_the_rows_again(
    rows: int, batch: int, epochs: int, most: int | None, steps: int
) -> None:
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


MIXTURES = st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 4)), min_size=1, max_size=4)


@given(sources=MIXTURES, batch=BATCHES, seed=st.integers(0, 99), epoch=st.integers(0, 4))
def test_an_epoch_sees_each_source_as_often_as_its_weight_says(
    sources: list[tuple[int, float]], batch: int, seed: int, epoch: int
) -> None:
    mixture = Mixture(tuple(rows for rows, _ in sources), tuple(weight for _, weight in sources))
    steps = steps_per_epoch(mixture, batch_size=batch)
    parts = [step_rows(mixture, batch_size=batch, seed=seed, step=epoch * steps + step) for step in range(steps)]
    seen = np.bincount(np.concatenate(parts), minlength=sum(mixture.rows))
    assert seen.sum() == mixture.per_epoch
    for (rows, weight), counts in zip(sources, np.split(seen, np.cumsum(mixture.rows)[:-1]), strict=True):
        assert set(counts.tolist()) <= {int(weight), int(weight) + 1}
        assert counts.sum() == max(1, round(weight * rows)) or abs(counts.sum() - weight * rows) <= 0.5


def test_weights_of_one_are_the_order_without_weights() -> None:
    for step in range(9):
        plain = step_rows(30, batch_size=7, seed=5, step=step)
        assert plain.tolist() == step_rows(Mixture((10, 20), (1, 1)), batch_size=7, seed=5, step=step).tolist()


def test_another_epoch_sees_another_half() -> None:
    halves = [frozenset(Mixture((40,), (0.5,)).epoch(seed=1, epoch=epoch).tolist()) for epoch in range(4)]
    assert all(len(half) == 20 for half in halves)
    assert len(set(halves)) == 4


def test_the_weighted_order_is_the_one_that_earlier_runs_saw() -> None:
    """This may never change either: a run goes on with the random streams that it began with."""
    mixture = Mixture((4, 6), (1.5, 0.5), streams=1)
    assert step_rows(mixture, batch_size=9, seed=1, step=0).tolist() == [2, 0, 7, 2, 0, 8, 5, 3, 1]
    assert step_rows(mixture, batch_size=9, seed=1, step=1).tolist() == [3, 5, 3, 0, 6, 2, 1, 0, 8]


def test_sums_over_an_epoch_count_rows_by_their_weight() -> None:
    mixture, per_row = Mixture((4, 6), (2, 0.5)), np.arange(10)
    assert mixture.seen(per_row) == 2 * (0 + 1 + 2 + 3) + 0.5 * (4 + 5 + 6 + 7 + 8 + 9)
    assert Mixture.even(10).seen(per_row) == 45
