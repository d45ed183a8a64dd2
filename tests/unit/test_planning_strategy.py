"""Which strategy `auto` is, and what sharding leaves on a process."""

from __future__ import annotations

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method
from finetune_api.strategy import Strategy
from finetune_trainer.planning.memory import Estimate, estimate
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.spread import WHOLE, Spread
from finetune_trainer.planning.strategy import check_installed, choose, of_gang, shards
from tests.support.planning_models import GIB, LLAMA_3B

# Llama-3-8B
SHAPE = ModelShape(
    hidden=4096, layers=32, vocabulary=128256, intermediate=14336, key_value=1024, parameters=8_030_261_248,
    blocks=(218_112_000,) * 32,
)  # fmt: skip


def _need(method: str, spread: Spread = WHOLE) -> Estimate:
    kind = Method(type=method)  # type: ignore[arg-type]
    return estimate(SHAPE, kind, precision="bfloat16", device="cuda", tokens=4096, spread=spread)


@pytest.mark.parametrize(
    ("asked", "method", "memory", "processes", "chosen"),
    [
        ("auto", "full", 80 * GIB, 8, "fsdp"),
        ("auto", "full", 1000 * GIB, 8, "ddp"),
        ("auto", "full", 80 * GIB, 1, "ddp"),
        ("auto", "lora", 80 * GIB, 8, "ddp"),
        ("auto", "lora", 16 * GIB, 8, "fsdp"),
        ("auto", "dora", 16 * GIB, 8, "fsdp"),
        ("auto", "qlora", 1 * GIB, 8, "fsdp"),
        ("auto", "prompt", 1 * GIB, 8, "ddp"),
        ("ddp", "full", 1 * GIB, 8, "ddp"),
        ("fsdp", "lora", 1000 * GIB, 8, "fsdp"),
        ("fsdp", "lora", 1000 * GIB, 1, "ddp"),
        ("deepspeed", "lora", 1000 * GIB, 1, "deepspeed"),
    ],
)
def test_auto_shards_what_does_not_fit(asked: str, method: str, memory: int, processes: int, chosen: str) -> None:
    settings = Strategy(type=asked)  # type: ignore[arg-type]
    got = choose(settings, Method(type=method), need=_need(method), memory=memory, processes=processes)  # type: ignore[arg-type]
    assert got == chosen


def test_auto_shards_nothing_that_it_cannot_plan() -> None:
    assert choose(Strategy(), Method(type="full"), need=None, memory=GIB, processes=8) == "ddp"
    assert choose(Strategy(), Method(type="full"), need=_need("full"), memory=None, processes=8) == "ddp"


def test_eight_shards_hold_an_eighth_and_what_is_whole_for_a_while() -> None:
    whole, part = _need("full"), _need("full", Spread(strategy="fsdp", ranks=8))
    assert part.optimizer == whole.optimizer // 8
    assert part.weights == 4 * SHAPE.parameters // 8, "no copies for autocast: they are made of what is gathered"
    assert whole.weights / 8 < part.weights + part.gathered < whole.weights / 3


def test_what_an_adapter_trains_lies_whole_on_every_process() -> None:
    whole, part = _need("lora"), _need("lora", Spread(strategy="fsdp", ranks=8))
    assert part.optimizer == whole.optimizer
    assert part.weights + part.gathered < whole.weights / 2


def test_what_is_gathered_of_a_base_in_4_bits_is_in_4_bits() -> None:
    spread = Spread(strategy="fsdp", ranks=8)
    whole, packed = (
        estimate(LLAMA_3B, Method(type=kind), precision="bfloat16", device="cuda", tokens=1, spread=spread)
        for kind in ("lora", "qlora")
    )
    blocks = 2 * 2 * LLAMA_3B.blocks[0]
    assert whole.gathered - packed.gathered == pytest.approx(blocks * (1 - 4.127 / 16), rel=1e-3)


@pytest.mark.parametrize(
    ("nodes", "each", "least", "expected", "crosses"),
    [
        (1, 8, 8, 8, False),
        (4, 8, 2, 8, False),  # a node holds the model
        (4, 8, 9, 16, True),  # two nodes do, and the others hold a replica
        (4, 8, 17, 32, False),  # three nodes would do, and do not divide four
        (6, 8, 20, 24, True),
        (4, 8, 999, 32, False),  # nothing fits: all share, which is the least
        (4, 1, 2, 4, False),  # nodes of one process share among all
        (1, 1, 1, 1, False),
    ],
)
def test_as_few_nodes_share_a_model_as_can_hold_it(
    nodes: int, each: int, least: int, expected: int, crosses: bool
) -> None:
    def fits(spread: Spread) -> bool:
        return (spread.shards or 0) >= least

    spread = shards(nodes=nodes, processes_per_node=each, fits=fits)
    assert (spread.ranks, spread.shards, spread.crosses) == (nodes * each, expected, crosses)


def test_a_model_that_no_node_holds_is_sharded_over_nodes() -> None:
    """8 billion weights in full, 4,096 tokens: 106, 73, 57 and 48 GiB in each of 2, 4, 8 and 16 processes."""

    def fits(spread: Spread) -> bool:
        return _need("full", spread).total <= 60 * GIB

    spreads = {
        nodes: of_gang(Strategy(type="fsdp"), nodes=nodes, processes_per_node=2, fits=fits).shards
        for nodes in (1, 2, 8)
    }
    assert spreads == {1: 2, 2: 4, 8: 8}


def test_a_gang_spreads_its_states_as_the_manifest_says() -> None:
    gang = {"nodes": 2, "processes_per_node": 4}
    assert of_gang(Strategy(type="ddp"), **gang) == of_gang(Strategy(), **gang) == Spread(ranks=8)
    assert of_gang(Strategy(type="fsdp"), **gang) == Spread(strategy="fsdp", ranks=8, shards=4)
    offloaded = of_gang(Strategy(type="deepspeed", zero_stage=3, offload="all"), **gang)
    assert (offloaded.zero_stage, offloaded.offload_optimizer, offloaded.offload_parameters) == (3, True, True)
    assert not of_gang(Strategy(type="deepspeed", offload="optimizer"), **gang).offload_parameters


def test_each_stage_of_zero_leaves_less_on_a_process() -> None:
    sizes = [_need("full", Spread(strategy="deepspeed", ranks=8, zero_stage=stage)).least for stage in (1, 2, 3)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < _need("full").least


def test_a_strategy_whose_package_is_missing_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.planning.strategy.find_spec", lambda _: None)
    check_installed(Strategy(type="fsdp"))
    with pytest.raises(FinetuneError, match="needs the package deepspeed") as failure:
        check_installed(Strategy(type="deepspeed"))
    assert failure.value.reason is Reason.InvalidSpec
