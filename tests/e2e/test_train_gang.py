"""Ranks that are real processes, over gloo on loopback: the number of ranks does not change what is learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Adapter, Lora, Method, Partial
from tests.support import rank_processes
from tests.support.training import CPU, Knobs, Place, largest_difference, make_run

LORA = Knobs(method=Method(type="lora", lora=Lora(rank=4)), steps=6, checkpoint_steps=2, rate=1e-3)
FULL = replace(LORA, method=Method(type="full"))
PARTIAL = replace(LORA, method=Method(type="partial", partial=Partial(layers=1)))
REPLAY = replace(LORA, replay=5 / 3)
ADAPTER = replace(LORA, method=Method(type="adapter", adapter=Adapter(bottleneck=8)))


def _rank(rank: int, world_size: int, port: int, folder: str, knobs: Knobs, stop_at: int | None) -> None:
    import os

    from finetune_trainer.parallel.ddp import Ddp

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    strategy = Ddp.join(Place(rank, rank, world_size), CPU)
    run = make_run(Path(folder), knobs, strategy=strategy)
    if stop_at is not None and rank == world_size - 1:  # only one rank sees the request
        seed = run.trainer._seed

        def watch(step: int, index: int) -> None:
            if step == stop_at - 1:
                run.trainer.reporter.run_dir.request_stop("test")
            seed(step, index)

        object.__setattr__(run.trainer, "_seed", watch)
        object.__setattr__(run.trainer, "stop_requested", lambda: run.trainer.reporter.run_dir.stop_requested)
    elif stop_at is not None:
        object.__setattr__(run.trainer, "stop_requested", lambda: False)
    outcome: dict[str, Any] = {}
    try:
        state = run.finish()
        outcome = {"state": state.to_json(), "losses": [point.loss for point in state.curve]}
    except FinetuneError as error:
        outcome = {"reason": str(error.reason)}
    torch.save({**outcome, "tensors": run.tensors()}, f"{folder}/rank{rank}.pt")
    strategy.close()


def _gang(folder: Path, world_size: int, knobs: Knobs, *, stop_at: int | None = None) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    rank_processes.start(_rank, world_size, str(folder), knobs, stop_at)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world_size)]


def _alone(folder: Path, knobs: Knobs) -> dict[str, Any]:
    run = make_run(folder, knobs)
    state = run.finish()
    return {"losses": [point.loss for point in state.curve], "tensors": run.tensors(), "state": state.to_json()}


@pytest.fixture(scope="module")
def two_of_lora(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """An undisturbed run of two ranks, which several tests compare with."""
    return _gang(tmp_path_factory.mktemp("two") / "gang", 2, LORA)


@pytest.mark.parametrize(
    ("knobs", "world_size"),
    [(LORA, 2), (LORA, 3), (FULL, 2), (FULL, 3), (PARTIAL, 2), (ADAPTER, 2), (REPLAY, 2), (REPLAY, 3)],
    ids=lambda v: f"{v} ranks" if isinstance(v, int) else v.method.type + ", replay" * bool(v.replay),
)
def test_ranks_with_uneven_shares_learn_what_one_learns(
    tmp_path: Path, two_of_lora: list[dict[str, Any]], knobs: Knobs, world_size: int
) -> None:
    """Five rows of other lengths a step, the last step of an epoch has two: with three ranks one has nothing to do."""
    alone = _alone(tmp_path / "alone", knobs)
    ranks = two_of_lora if (knobs, world_size) == (LORA, 2) else _gang(tmp_path / "gang", world_size, knobs)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-6)
        assert largest_difference(rank["tensors"], ranks[0]["tensors"]) == 0.0
    weights = [{n: t for n, t in r["tensors"].items() if n.startswith("weights")} for r in (ranks[0], alone)]
    assert largest_difference(*weights) < 5e-6
    scores = [r["state"]["validation"][-1]["scores"]["loss"] for r in (ranks[0], alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_a_stop_that_one_rank_sees_stops_all_and_another_number_of_ranks_goes_on(tmp_path: Path) -> None:
    alone = _alone(tmp_path / "alone", LORA)
    stopped = _gang(tmp_path / "gang", 2, LORA, stop_at=3)
    assert [rank["reason"] for rank in stopped] == [Reason.Interrupted] * 2
    (tmp_path / "gang" / "run" / "stop").unlink()
    resumed = _gang(tmp_path / "gang", 3, LORA)
    assert resumed[0]["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    weights = [{n: t for n, t in r["tensors"].items() if n.startswith("weights")} for r in (resumed[0], alone)]
    assert largest_difference(*weights) < 5e-6


def test_the_same_gang_resumes_to_the_bit(tmp_path: Path, two_of_lora: list[dict[str, Any]]) -> None:
    _gang(tmp_path / "cut", 2, LORA, stop_at=4)
    (tmp_path / "cut" / "run" / "stop").unlink()
    resumed = _gang(tmp_path / "cut", 2, LORA)
    assert largest_difference(resumed[0]["tensors"], two_of_lora[0]["tensors"]) == 0.0
