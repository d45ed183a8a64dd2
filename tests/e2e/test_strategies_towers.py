"""The language model inside a class with towers, in shards: what one rank learns, and the same files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.methods import Lora, Method
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.methods import merged
from finetune_trainer.methods.full import FullAttached
from finetune_trainer.methods.source import Source
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.ddp import Ddp
from finetune_trainer.parallel.registry import spread
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.model import load_network
from tests.support import rank_processes
from tests.support.multimodal_models import tower_model
from tests.support.training import CPU, Knobs, Place, largest_difference, make_run

METHODS = {"full": Method(type="full"), "lora": Method(type="lora", lora=Lora(rank=4))}
FAMILIES = ("Gemma3", "Gemma4", "Qwen2_5_VL")
CASES = [(family, method) for family in FAMILIES for method in METHODS]
TOLERANCE = 5e-6
"""Of weights after four steps in fp32: sums over ranks are taken in another order. Of full models it bounds the root
mean square of each tensor, because AdamW makes a whole step of a gradient that is nothing but rounding."""


@dataclass(frozen=True)
class Case:
    family: str
    method: str
    strategy: Literal["single", "fsdp"]

    @property
    def folder(self) -> str:
        return f"{self.family}-{self.method}-{self.strategy}"


def _run(root: Path, case: Case, strategy: Strategy) -> None:
    base, method = root / case.family, METHODS[case.method]
    net, _ = load_network(base, dtype=torch.float32, strategy=strategy, device=CPU, frozen=not method.trains_the_model)
    knobs = Knobs(method=method, steps=4, rate=1e-3, max_norm=0.1, packing=False)
    run = make_run(root / case.folder, knobs, strategy=strategy, net=net)
    run.finish()
    whole = isinstance(run.attached, FullAttached)
    strategy.collect(net, everything=whole)
    if strategy.place.first:
        folder = root / case.folder / "export"
        folder.mkdir()
        attached: Any = run.attached
        if whole:
            attached = replace(attached, source=Source.in_folder(base))
        attached.export(folder)
        if not whole:
            merged.write(merged.low_rank_changes(net), base, folder / merged.FOLDER, alive=lambda: None)


def _rank(rank: int, world_size: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ddp.join(Place(rank, rank, world_size, world_size), CPU)
    for family, method in CASES:
        strategy = spread(ranks, "fsdp", device=CPU, settings=Settings(type="fsdp"))
        _run(Path(root), Case(family, method, "fsdp"), strategy)
        ranks.barrier()
    ranks.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    for family in FAMILIES:
        tower_model(folder / family, family)
    rank_processes.start(_rank, 2, str(folder))
    for family, method in CASES:
        _run(folder, Case(family, method, "single"), cast(Strategy, Single()))
    return folder


@pytest.mark.parametrize(("family", "method"), CASES)
def test_shards_learn_and_write_what_one_rank_does(root: Path, family: str, method: str) -> None:
    name = "model" if method == "full" else "adapter_model"
    alone, shared = (
        load_file(root / f"{family}-{method}-{strategy}" / "export" / f"{name}.safetensors")
        for strategy in ("single", "fsdp")
    )
    if method == "full":
        assert alone.keys() == shared.keys()
        apart = {each: (alone[each] - shared[each]).double().square().mean().sqrt() for each in alone}
        assert max(apart.values()) <= TOLERANCE, max(apart, key=lambda each: apart[each])
        before = load_file(root / family / "model.safetensors")
        assert before.keys() == shared.keys()
        tower = [key for key in before if "vis" in key or "multi_modal" in key or "layer_scalar" in key]
        assert tower
        assert all(torch.equal(before[key], shared[key]) for key in tower)
        return
    assert largest_difference(alone, shared) <= TOLERANCE
    whole = load_file(root / f"{family}-{method}-fsdp" / "export" / merged.FOLDER / "model.safetensors")
    assert whole.keys() == load_file(root / family / "model.safetensors").keys()
