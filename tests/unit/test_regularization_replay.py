"""Replay: general rows are mixed in by example, the same ones after a resume and on any number of ranks, and no
document that measures anything is replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method, Prompt
from finetune_api.regularization import Replay as Settings
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.split import fingerprint, is_replayed
from finetune_trainer.regularization.base import Regularization
from finetune_trainer.regularization.replay import Replay
from finetune_trainer.train.state import State
from tests.support.datasets import spec_of, texts
from tests.support.tokenizers import tokenizer_folder, write_jsonl
from tests.support.training import (
    GENERAL_LENGTHS,
    Knobs,
    Place,
    Run,
    documents,
    interrupted,
    largest_difference,
    make_run,
)

GENERAL = documents(GENERAL_LENGTHS, seed=4, masked=0.0)
QUARTER = 5 / 3
"""Rows in a step of five training rows, at fraction 0.25."""


def _replay(per_step: float = QUARTER) -> Replay:
    return Replay(GENERAL, per_step=per_step, weight=0.3, seed=1)


@pytest.mark.parametrize(("fraction", "batch", "mean"), [(0.25, 12, 4.0), (0.05, 32, 32 / 19), (0.5, 8, 8.0)])
def test_a_fraction_is_of_the_rows_of_a_step(fraction: float, batch: int, mean: float) -> None:
    assert Settings(fraction=fraction).rows_per_step(batch) == pytest.approx(mean)


@pytest.mark.parametrize("per_step", [0.21, 1.0, QUARTER, 4.0])
def test_rows_are_evenly_spread_over_steps_and_all_are_seen_before_any_comes_again(per_step: float) -> None:
    replay = _replay(per_step)
    steps = [replay.of_step(step) for step in range(40)]
    assert {len(rows) for rows in steps} <= {int(per_step), int(per_step) + 1}
    assert sum(map(len, steps)) == int(40 * per_step)
    order = np.concatenate(steps)
    passes = [order[start : start + len(GENERAL)] for start in range(0, len(order), len(GENERAL))]
    for whole in passes[:-1]:
        assert sorted(whole.tolist()) == list(range(len(GENERAL)))
    assert len(passes) < 3 or not np.array_equal(passes[0], passes[1])


def test_tasks_take_turns_and_each_repeats_its_own_rows() -> None:
    """A task of two rows is replayed as often as one of the others."""
    parts = (2, len(GENERAL) - 2)
    replay = replace(_replay(1.0), parts=parts)
    order = np.concatenate([replay.of_step(step) for step in range(4 * parts[1])])
    small, large = order[::2].tolist(), order[1::2].tolist()
    assert {tuple(sorted(small[at : at + 2])) for at in range(0, len(small), 2)} == {(0, 1)}
    for start in (0, parts[1]):
        assert sorted(large[start : start + parts[1]]) == list(range(2, len(GENERAL)))
    assert large[: parts[1]] != large[parts[1] : 2 * parts[1]], "in another order"


def test_a_replayed_row_of_each_task_weighs_as_much() -> None:
    parts = (2, len(GENERAL) - 2)
    replay = Replay.of(GENERAL, per_step=1.0, tokens_per_row=3.0, seed=1, parts=parts)
    means = [GENERAL.targets[:2].mean(), GENERAL.targets[2:].mean()]
    assert replay.weight * np.mean(means) == pytest.approx(3.0)


def test_another_seed_replays_in_another_order() -> None:
    one, other = (np.concatenate([replace(_replay(), seed=s).of_step(i) for i in range(4)]) for s in (1, 2))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("parts", [(), (3, len(GENERAL) - 3)], ids=["general text", "two tasks"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_row_of_a_step_is_at_one_rank(world_size: int, parts: tuple[int, ...]) -> None:
    train, rows = documents([9, 30, 4, 17, 8]), np.arange(5)
    replay = replace(_replay(), parts=parts)
    regularization = Regularization(replay)
    for step in range(6):
        shares = [regularization.shared(rows, train, step, Place(r, r, world_size)) for r in range(world_size)]
        assert sorted(np.concatenate([mine for mine, _ in shares]).tolist()) == [0, 1, 2, 3, 4]
        again = np.concatenate([again for _, again in shares])
        assert sorted(again.tolist()) == sorted(replay.of_step(step).tolist())


def test_a_replayed_row_weighs_as_much_as_a_training_row() -> None:
    replay = Replay.of(GENERAL, per_step=1.0, tokens_per_row=3.0, seed=1)
    assert replay.weight * GENERAL.trained_tokens / len(GENERAL) == pytest.approx(3.0)


def test_the_gradient_is_that_of_the_weighted_mean(tmp_path: Path) -> None:
    """Of one step of plain arithmetic over all rows: (nats + w · replayed nats) / (tokens + w · replayed tokens)."""
    knobs = Knobs(method=Method(type="full"), steps=1, batch_size=5, max_norm=0.0, replay=QUARTER)
    run, alone = make_run(tmp_path / "a", knobs), make_run(tmp_path / "b", knobs)
    norms: list[float] = []
    step = run.trainer.weights.step
    object.__setattr__(run.trainer.weights, "step", lambda *a, **k: norms.append(step(*a, **k)) or norms[-1])
    run.finish()
    rows, again = run.trainer.regularization.shared(
        _rows_of_step(run), run.trainer.train, 0, run.trainer.strategy.place
    )
    model, net = alone.trainer.model, alone.net
    layout = alone.trainer.layout
    total, tokens = torch.zeros(()), 0.0
    for corpus, chosen, weight in ((alone.trainer.train, rows, 1.0), (GENERAL, again, 0.3)):
        for batch in layout.batches(corpus, chosen):
            total = total + weight * model.nats(batch)
            tokens += weight * batch.target_count
    (total / tokens).backward()
    expected = torch.sqrt(sum((p.grad**2).sum() for p in net.parameters() if p.grad is not None))
    assert norms[0] == pytest.approx(float(expected), rel=1e-5)


def _rows_of_step(run: Run) -> np.ndarray:
    from finetune_trainer.data.order import step_rows

    course = run.trainer.course
    return step_rows(len(run.trainer.train), batch_size=course.batch_size, seed=course.seed, step=0)


@pytest.mark.parametrize(
    "method",
    [Method(type="lora", lora=Lora(rank=4, dropout=0.2)), Method(type="prompt", prompt=Prompt(virtual_tokens=3))],
    ids=lambda method: method.type,
)
def test_a_run_that_was_stopped_and_resumed_replays_the_same_rows(tmp_path: Path, method: Method) -> None:
    knobs = Knobs(method=method, steps=6, replay=QUARTER)
    whole = make_run(tmp_path / "whole", knobs)
    state = whole.finish()
    resumed = interrupted(lambda: make_run(tmp_path / "cut", knobs), 3)
    again = resumed.finish()
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0
    assert _replayed(again) == _replayed(state)


def test_the_curve_tells_replayed_text_from_training_rows(tmp_path: Path) -> None:
    with_replay = make_run(tmp_path / "a", Knobs(steps=4, rate=1e-9, replay=QUARTER)).finish()
    without = make_run(tmp_path / "b", Knobs(steps=4, rate=1e-9)).finish()
    losses = [[point.loss for point in state.curve] for state in (with_replay, without)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert with_replay.trained_tokens == without.trained_tokens
    assert all(loss is not None and loss > 3 for loss in _replayed(with_replay))
    assert [point.regularization for point in without.curve] == [None] * 4


def _replayed(state: State) -> list[float | None]:
    return [point.regularization and point.regularization["replay"] for point in state.curve]


def _load(folder: Path, replay: str, **data: object) -> Datasets:
    tokenizer_folder(folder / "model")
    train = write_jsonl(folder / "train.jsonl", *texts(20))
    return load_datasets(
        spec_of(train, **data),
        tokenizer_path=folder / "model",
        cache=folder / "cache",
        seed=1,
        replay=replay,
    )


def test_one_general_text_is_shared_out_by_document(tmp_path: Path) -> None:
    """Each document measures or is replayed, whatever the order of the file."""
    rows = texts(40, start=1000)
    general = write_jsonl(tmp_path / "general.jsonl", *rows)
    data = _load(tmp_path, general, general={"uri": general})
    assert data.general is not None
    assert data.replay is not None
    assert data.general.marks is not None
    assert data.replay.marks is not None
    measured, replayed = set(data.general.marks.rows.tolist()), set(data.replay.marks.rows.tolist())
    assert not measured & replayed
    assert len(measured) + len(replayed) == 40
    expected = sum(is_replayed(fingerprint(str(row["text"]))) for row in rows)
    assert (len(data.replay), data.statistics.splits["replay"].left_out) == (expected, 40 - expected)
    assert 8 < expected < 32
    assert "so that no document is both replayed and measured" in data.statistics.splits["general"].line()


def test_documents_that_are_measured_are_not_replayed(tmp_path: Path) -> None:
    """Also with other case and white space, and from any held-out data set."""
    test = write_jsonl(tmp_path / "test.jsonl", *texts(3, start=500))
    general = write_jsonl(tmp_path / "general.jsonl", *texts(5, start=1000))
    other = write_jsonl(tmp_path / "other.jsonl", {"text": "ROW  501"}, {"text": "Row 1004"}, *texts(4, start=2000))
    data = _load(tmp_path, other, general={"uri": general}, test={"uri": test})
    assert data.replay is not None
    assert (len(data.replay), data.statistics.splits["replay"].left_out) == (4, 2)
    assert data.general is not None
    assert len(data.general) == 5


def test_text_that_is_measured_as_a_whole_cannot_be_replayed(tmp_path: Path) -> None:
    general = write_jsonl(tmp_path / "general.jsonl", *texts(5, start=1000))
    other = write_jsonl(tmp_path / "other.jsonl", *texts(5, start=1000))
    with pytest.raises(FinetuneError, match="replay: none of the 5 rows is left") as error:
        _load(tmp_path, other, general={"uri": general})
    assert error.value.reason is Reason.NothingToTrain
