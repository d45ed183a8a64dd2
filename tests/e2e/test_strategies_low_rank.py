"""Low-rank methods that need more of a base than products with it, on a base in shards: DoRA reads its rows' norms, and
QLoRA keeps it in 4 bits.

One rank, whole models and shards learn the same and resume each other. Each gang is started once and runs all its
cases; the tests compare what it left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from finetune_api.methods import Lora, Method
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.methods import merged
from finetune_trainer.methods.qlora import packed_layers
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.ddp import Ddp
from finetune_trainer.parallel.registry import spread
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.activation_checkpointing import recompute_blocks
from finetune_trainer.train.model import load_network
from tests.support import rank_processes
from tests.support.training import CPU, Knobs, Place, largest_difference, make_run, network

METHODS = {
    "dora": Method(type="dora", dora=Lora(rank=4)),
    "qlora": Method(type="qlora", qlora=Lora(rank=4)),
}
TOLERANCE = 5e-6
"""Of weights after eight steps in fp32: sums over ranks are taken in another order."""


@dataclass(frozen=True)
class Case:
    """A run of one method under one strategy, in a folder; with `killed_at` it dies when that step begins."""

    folder: str
    method: str
    strategy: Literal["ddp", "fsdp"]
    killed_at: int | None = None
    recomputed: bool = False
    dtype: torch.dtype = torch.float32


class _Killed(Exception):
    pass


def _run(root: Path, case: Case, strategy: Strategy) -> dict[str, Any]:
    method = METHODS[case.method]
    packed = partial(packed_layers, device=CPU) if case.method == "qlora" else None
    net, _ = load_network(root / "base", dtype=case.dtype, strategy=strategy, device=CPU, frozen=True, packed=packed)
    knobs = Knobs(method=method, steps=8, checkpoint_steps=1, rate=1e-3, max_norm=0.1)
    run = make_run(root / case.folder, knobs, strategy=strategy, net=net)
    if case.recomputed:
        recompute_blocks(net, lowest=run.attached.lowest_layer)
    seed = run.trainer._seed

    def dying(step: int, index: int) -> None:
        if step == case.killed_at:
            raise _Killed
        seed(step, index)

    object.__setattr__(run.trainer, "_seed", dying)
    fresh = {name: tensor.clone() for name, tensor in run.attached.trainable.items()}
    held = _held(net, run.attached.trainable)
    unpacked = {name: weight.clone() for name, weight in _unpacked(net)}
    try:
        state = run.finish()
    except _Killed:
        run.trainer.checkpointer.wait()
        return {}
    merged.check(merged.low_rank_changes(net), root / "base")
    if strategy.place.first:
        run.attached.export(root / case.folder / "export")
        merged.write(
            merged.low_rank_changes(net),
            root / "base",
            root / case.folder / "export" / merged.FOLDER,
            alive=lambda: None,
        )
    return {
        "fresh": fresh,
        "held": held,
        "unpacked": unpacked,
        "losses": [point.loss for point in state.curve],
        "norms": [point.gradient_norm for point in state.curve],
        "validation": state.validation[-1].scores.loss,
        "tensors": run.tensors(),
    }


def _held(net: nn.Module, trainable: Any) -> int:
    """Bytes of the base on this rank."""
    own = {id(parameter) for parameter in trainable.values()}
    base = [parameter for parameter in net.parameters() if id(parameter) not in own]
    scales = [parameter.quant_state.absmax for parameter in base if hasattr(parameter, "quant_state")]
    return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in [*base, *scales])


def _unpacked(net: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Collective: what layers in 4 bits compute with."""
    for name, module in net.named_modules():
        if hasattr(module, "unpacked"):
            yield name, module.unpacked()
        elif hasattr(module._parameters.get("weight"), "quant_state"):
            yield name, dequantize_4bit(module.weight, module.weight.quant_state)


def _rank(rank: int, world_size: int, port: int, root: str, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ddp.join(Place(rank, rank, world_size, world_size), CPU)
    for case in cases:
        told = _run(Path(root), case, spread(ranks, case.strategy, device=CPU, settings=Settings(type=case.strategy)))
        torch.save(told, f"{root}/{case.folder}.{rank}.pt")
        ranks.barrier()
    ranks.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("low-rank")
    made = network("Qwen2", hidden_size=64, intermediate_size=128, tie_word_embeddings=True)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    made.save_pretrained(folder / "base")
    return folder


Told = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def gangs(root: Path) -> Told:
    """What each rank of a case's gang told. A chain is one run: alone, two sharded, three sharded, alone."""
    for method in METHODS:
        torch.save(_run(root, Case(f"alone-{method}", method, "ddp"), Single()), root / f"alone-{method}.0.pt")
        _run(root, Case(f"chain-{method}", method, "ddp", killed_at=2), Single())
    two = [Case(f"{kind}-2-{method}", method, kind) for kind in ("ddp", "fsdp") for method in METHODS]
    two += [Case(f"again-{method}", method, "fsdp", recomputed=True) for method in METHODS]
    two += [Case(f"chain-{method}", method, "fsdp", killed_at=4) for method in METHODS]
    two += [Case(f"bf16-{kind}", "qlora", kind, dtype=torch.bfloat16) for kind in ("ddp", "fsdp")]
    three = [Case("fsdp-3-qlora", "qlora", "fsdp")]
    three += [Case(f"chain-{method}", method, "fsdp", killed_at=6) for method in METHODS]
    rank_processes.start(_rank, 2, str(root), two)
    rank_processes.start(_rank, 3, str(root), three)
    for method in METHODS:
        torch.save(_run(root, Case(f"chain-{method}", method, "ddp"), Single()), root / f"chain-{method}.0.pt")
    return lambda name: [torch.load(file) for file in sorted(root.glob(f"{name}.*.pt"))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["ddp-2", "fsdp-2", "chain"])
def test_shards_learn_what_one_rank_learns(gangs: Told, case: str, method: str) -> None:
    """No matrix divides by three. The chain was killed on one rank, on two and three sharded ones, and ended on one."""
    told, alone = gangs(f"{case}-{method}")[0], gangs(f"alone-{method}")[0]
    assert told["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    assert told["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert told["validation"] == pytest.approx(alone["validation"], rel=1e-6)
    weights = [{n: t for n, t in each["tensors"].items() if n.startswith("weights")} for each in (told, alone)]
    assert largest_difference(*weights) < TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_what_starts_to_train_is_the_same_to_the_bit(gangs: Told, method: str) -> None:
    """DoRA's magnitudes among it, which are measured on weights that no rank has whole."""
    alone = gangs(f"alone-{method}")[0]["fresh"]
    for rank in gangs(f"fsdp-2-{method}"):
        assert all(torch.equal(tensor, alone[name]) for name, tensor in rank["fresh"].items())


@pytest.mark.parametrize("case", ["fsdp-2", "fsdp-3"])
def test_a_base_in_4_bits_is_the_same_to_the_bit(gangs: Told, case: str) -> None:
    alone = gangs("alone-qlora")[0]["unpacked"]
    assert len(alone) == 14, "seven linear layers in each of two blocks"
    for rank in gangs(f"{case}-qlora"):
        assert rank["unpacked"].keys() == alone.keys()
        assert all(torch.equal(weight, alone[name]) for name, weight in rank["unpacked"].items())


def test_on_a_base_in_16_bits_shards_learn_what_whole_models_learn_to_the_bit(gangs: Told) -> None:
    sharded, whole = gangs("bf16-fsdp")[0], gangs("bf16-ddp")[0]
    assert sharded["losses"] == whole["losses"]
    assert all(torch.equal(tensor, whole["tensors"][name]) for name, tensor in sharded["tensors"].items())
    assert all(torch.equal(weight, whole["unpacked"][name]) for name, weight in sharded["unpacked"].items())


@pytest.mark.parametrize("method", METHODS)
def test_running_blocks_again_changes_no_bit(gangs: Told, method: str) -> None:
    again, once = gangs(f"again-{method}")[0], gangs(f"fsdp-2-{method}")[0]
    assert again["losses"] == once["losses"]
    assert largest_difference(again["tensors"], once["tensors"]) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_holds_its_share_of_the_base(gangs: Told, method: str) -> None:
    (whole,) = (told["held"] for told in gangs(f"alone-{method}"))
    shares = [told["held"] for told in gangs(f"fsdp-2-{method}")]
    assert sum(shares) == whole
    assert max(shares) < 0.51 * whole


@pytest.mark.parametrize("method", METHODS)
def test_the_artifact_is_that_of_one_rank(gangs: Told, root: Path, method: str) -> None:
    """Adapter and merged model."""
    assert gangs(f"fsdp-2-{method}")
    exports = [root / f"{case}-{method}" / "export" for case in ("fsdp-2", "alone")]
    sharded, alone = ([load_file(file) for file in sorted(folder.rglob("*.safetensors"))] for folder in exports)
    assert len(alone) == 2
    for left, right in zip(sharded, alone, strict=True):
        assert largest_difference(left, right) < TOLERANCE
    configs = [(folder / "adapter_config.json").read_text() for folder in exports]
    assert configs[0] == configs[1]
