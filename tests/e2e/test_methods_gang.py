"""Methods whose work is shared out by other code than the loop's, or that put more into a row: two ranks make what one
makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.methods import Method, Prefix, Prompt
from finetune_trainer.methods.probe import ProbeAttached
from finetune_trainer.train.linear_probe import ProbeRun, probed
from tests.support import rank_processes
from tests.support.training import CPU, Knobs, Place, largest_difference, make_run, sorted_words

PROBE = Knobs(method=Method(type="probe"), max_tokens=200)
PROMPT = Knobs(method=Method(type="prompt", prompt=Prompt(virtual_tokens=4)), steps=5, rate=1e-3)
PREFIX = Knobs(method=Method(type="prefix", prefix=Prefix(virtual_tokens=4)), steps=5, rate=1e-3)
METHODS = [PROBE, PROMPT, PREFIX]


def _work(folder: Path, knobs: Knobs, strategy: Any = None) -> dict[str, Any]:
    if knobs.method.type != "probe":
        run = make_run(folder, knobs, strategy=strategy)
        state = run.finish()
        return {"losses": [point.loss for point in state.curve], "tensors": run.tensors()}
    run = make_run(folder, knobs, strategy=strategy, corpus=sorted_words(90, seed=1))
    assert isinstance(run.attached, ProbeAttached)
    probing = ProbeRun(run.trainer, run.attached, ("low", "high"))
    base, tuned, _ = probed(probing, {"test": sorted_words(31, seed=2)}, run.trainer.measure_base)
    assert run.attached.classifier is not None
    weights = {"weight": torch.from_numpy(run.attached.classifier.weight)}
    return {
        "losses": [base["test"].scores.loss, tuned["test"].scores.loss, tuned["test"].scores.accuracy],
        "tensors": weights,
    }


def _rank(rank: int, world_size: int, port: int, folder: str) -> None:
    import os

    from finetune_trainer.parallel.ddp import Ddp

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    strategy = Ddp.join(Place(rank, rank, world_size), CPU)
    for knobs in METHODS:
        found = _work(Path(folder) / knobs.method.type, knobs, strategy)
        torch.save(found, f"{folder}/{knobs.method.type}{rank}.pt")
    strategy.close()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks made, one method after another."""
    folder = tmp_path_factory.mktemp("gang")
    rank_processes.start(_rank, 2, str(folder))
    return folder


@pytest.mark.parametrize("knobs", METHODS, ids=lambda knobs: knobs.method.type)
def test_two_ranks_make_what_one_makes(tmp_path: Path, ranks: Path, knobs: Knobs) -> None:
    alone = _work(tmp_path, knobs)
    told = [torch.load(ranks / f"{knobs.method.type}{rank}.pt") for rank in range(2)]
    assert largest_difference(told[0]["tensors"], told[1]["tensors"]) == 0.0
    for rank in told:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        names = {name for name in alone["tensors"] if not name.startswith("moments")}
        ours, theirs = ({name: found["tensors"][name] for name in names} for found in (rank, alone))
        assert largest_difference(ours, theirs) < 1e-3
