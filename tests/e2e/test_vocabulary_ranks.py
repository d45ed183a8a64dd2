"""Rows of the embeddings on ranks that are real processes: whole weights or shards, two learn what one learns."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from finetune_api.methods import Lora, Method
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.ddp import Ddp
from finetune_trainer.parallel.registry import spread
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.model import load_network
from finetune_trainer.vocabulary.base_head import BaseHead
from tests.support import rank_processes
from tests.support.training import CPU, Knobs, Place, Run, largest_difference, make_run, network

KNOBS = Knobs(method=Method(type="lora", lora=Lora(rank=4)), rows=(2, 5, 40, 96), steps=5, rate=1e-3)
MODELS = {"tied": True, "untied": False}


@dataclass(frozen=True)
class Case:
    model: str
    strategy: Literal["ddp", "fsdp"]

    @property
    def folder(self) -> str:
        return f"{self.strategy}-{self.model}"


FIRST = 90
"""Of the rows that the base model does not share with the network; the last row that trains is one."""
CASES = [Case(model, kind) for kind in ("ddp", "fsdp") for model in MODELS]


def _run(root: Path, folder: str, model: str, strategy: Strategy) -> dict[str, Any]:
    net, _ = load_network(root / model, dtype=torch.float32, strategy=strategy, device=CPU, frozen=True)
    run = make_run(root / folder, KNOBS, strategy=strategy, net=net, base=root / model)
    base = _base(run, net, root / model)
    state = run.finish()
    return {
        "base": base,
        "losses": [point.loss for point in state.curve],
        "norms": [point.gradient_norm for point in state.curve],
        "validation": state.validation[-1].scores.loss,
        "tensors": {name: tensor for name, tensor in run.tensors().items() if name.startswith("weights")},
    }


def _base(run: Run, net: nn.Module, folder: Path) -> float:
    """The loss of the model in `folder`, measured in a network whose rows from FIRST on are others."""
    trainer = run.trainer
    assert trainer.model.rows is not None
    assert trainer.validation is not None
    kept = {name: parameter.detach().clone() for name, parameter in trainer.model.rows.trainable.items()}
    with torch.no_grad():
        for parameter in trainer.model.rows.trainable.values():
            parameter[-1] += 1.0
    head = BaseHead.of(net, folder, first=FIRST, device=CPU)
    own = replace(trainer, model=replace(trainer.model, rows=None, base_head=head))
    found = own.measure_base(trainer.validation).scores.loss
    with torch.no_grad():
        for name, parameter in trainer.model.rows.trainable.items():
            parameter.copy_(kept[name])
    return found


def _rank(rank: int, world_size: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ddp.join(Place(rank, rank, world_size, world_size), CPU)
    for case in CASES:
        strategy = spread(ranks, case.strategy, device=CPU, settings=Settings(type=case.strategy))
        torch.save(_run(Path(root), case.folder, case.model, strategy), f"{root}/{case.folder}.{rank}.pt")
        ranks.barrier()
    ranks.close()


def _untouched(folder: Path) -> float:
    """The loss of the model in `folder` on the same rows, in a network of its own."""
    net, _ = load_network(folder, dtype=torch.float32, strategy=Single(), device=CPU, frozen=True)
    run = make_run(folder / "plain", replace(KNOBS, rows=()), net=net)
    assert run.trainer.validation is not None
    return run.trainer.measure_base(run.trainer.validation).scores.loss


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    for model, tied in MODELS.items():
        network("Llama", tie_word_embeddings=tied).save_pretrained(folder / model)  # type: ignore[operator]
        torch.save(_run(folder, f"alone-{model}", model, Single()), folder / f"alone-{model}.pt")
    rank_processes.start(_rank, 2, str(folder))
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
def test_two_ranks_learn_what_one_learns(root: Path, case: Case) -> None:
    alone = torch.load(root / f"alone-{case.model}.pt")
    told = [torch.load(root / f"{case.folder}.{rank}.pt") for rank in range(2)]
    assert told[0]["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    assert told[0]["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert told[0]["validation"] == pytest.approx(alone["validation"], rel=1e-6)
    assert [each["base"] for each in told] == pytest.approx([_untouched(root / case.model)] * 2, rel=1e-6)
    assert alone["base"] == pytest.approx(told[0]["base"], rel=1e-6)
    assert largest_difference(told[0]["tensors"], alone["tensors"]) < 5e-6
    assert largest_difference(told[0]["tensors"], told[1]["tensors"]) == 0.0
    names = {name for name in alone["tensors"] if "vocabulary" in name}
    assert len(names) == (1 if MODELS[case.model] else 2)
