"""Compiled blocks whose weights lie in shards: two ranks learn what one learns without a compiler.

The gang is started once and runs all cases. What the compiler leaves is kept between test runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.failures import FinetuneError
from finetune_api.methods import Lora, Method, Partial
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.methods.needs import check_compile
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.ddp import Ddp
from finetune_trainer.parallel.registry import spread
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.compilation import compile_blocks
from finetune_trainer.train.model import load_network
from tests.support import rank_processes
from tests.support.training import CPU, Knobs, Place, make_run, network

ARTEFACTS = Path.home() / ".cache" / "finetune-operator" / "compiled-tests"
METHODS = {
    "full": Method(type="full"),
    "partial": Method(type="partial", partial=Partial(layers=1)),
    "lora": Method(type="lora", lora=Lora(rank=4)),
}


def _run(folder: Path, method: Method, strategy: Strategy, *, compiled: bool) -> dict[str, Any]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    frozen = not method.trains_the_model
    net, _ = load_network(folder.parent / "base", dtype=torch.float32, strategy=strategy, device=CPU, frozen=frozen)
    run = make_run(folder, Knobs(steps=3, method=method, rate=1e-3), strategy=strategy, net=net)
    if compiled:
        compile_blocks(net, lowest=run.attached.lowest_layer, cache=ARTEFACTS, device=CPU)
    state = run.finish()
    return {
        "losses": [point.loss for point in state.curve],
        "norms": [point.gradient_norm for point in state.curve],
        "validation": state.validation[-1].scores.loss,
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": dict(counters["graph_break"]),
    }


def _rank(rank: int, world_size: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ddp.join(Place(rank, rank, world_size, world_size), CPU)
    for name, method in METHODS.items():
        shards = spread(ranks, "fsdp", device=CPU, settings=Settings(type="fsdp"))
        told = _run(Path(root) / name, method, shards, compiled=True)
        torch.save(told, f"{root}/{name}.{rank}.pt")
        ranks.barrier()
    ranks.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each rank left what it tells; skips, in the words of the refusal, where nothing can be compiled."""
    try:
        check_compile(METHODS["full"], "fsdp")
    except FinetuneError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("compiled")
    network(tie_word_embeddings=True).save_pretrained(folder / "base")
    rank_processes.start(_rank, 2, str(folder))
    return folder


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_with_compiled_blocks_in_shards_learn_what_one_learns_without(root: Path, name: str) -> None:
    alone = _run(root / f"alone-{name}", METHODS[name], Single(), compiled=False)
    for rank in (0, 1):
        told = torch.load(root / f"{name}.{rank}.pt")
        assert told["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert told["norms"] == pytest.approx(alone["norms"], rel=1e-4)
        assert told["validation"] == pytest.approx(alone["validation"], rel=1e-5)
        assert 0 < told["graphs"] <= 8
        assert not told["breaks"]
