"""What strategies leave on a rank: the published table, and that more ranks never need more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_api.methods import Method
from finetune_trainer.planning.memory import estimate, trained_parameters
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.spread import Parts, Spread

PARAMETERS = 7_500_000_000
SHAPE = ModelShape(
    hidden=4096, layers=32, vocabulary=32000, intermediate=11008, key_value=4096, parameters=PARAMETERS,
    linears={f"layers.{i}.mlp.up.weight": (11008, 4096) for i in range(32)}, blocks=(200_000_000,) * 32,
)  # fmt: skip

EVERY = [
    Spread(strategy="ddp"),
    Spread(strategy="fsdp"),
    *(Spread(strategy="deepspeed", zero_stage=stage) for stage in (1, 2, 3)),
    Spread(strategy="deepspeed", zero_stage=3, offload_optimizer=True, offload_parameters=True),
]


@pytest.mark.parametrize(
    ("stage", "ours", "paper"),
    [(1, 8 + 12 / 64, 4 + 12 / 64), (2, 4 + 16 / 64, 2 + 14 / 64), (3, 16 / 64, 16 / 64)],
)
def test_zero_shares_what_its_paper_says_of_weights_in_fp32(stage: int, ours: float, paper: float) -> None:
    """Bytes a parameter on 64 ranks. Rajbhandari et al. 2020, figure 1: 31.4, 16.6 and 1.88 GB of 7.5 billion, with
    weights and gradients in 16 bits; here they are in 32, and stage 3 has no second copy of them."""
    assert paper * PARAMETERS / 1e9 == pytest.approx({1: 31.4, 2: 16.6, 3: 1.88}[stage], rel=0.005)
    spread = Spread(strategy="deepspeed", ranks=64, zero_stage=stage)
    for low, copies in ((False, 0), (True, 2)):
        states = spread.share(Parts(trained=PARAMETERS, frozen=0, gathered=0), low=low, trains_the_model=True)
        held = states.weights + states.gradients + states.moments
        assert held == pytest.approx((ours + copies) * PARAMETERS, rel=1e-6)


MOMENTS = [("full", "ddp", 1), ("full", "fsdp", 8), ("lora", "ddp", 1), ("lora", "fsdp", 1)]


@pytest.mark.parametrize(("method", "strategy", "sharing"), MOMENTS)
def test_moments_in_8_bits_save_six_bytes_of_each_parameter_that_trains(
    method: str, strategy: str, sharing: int
) -> None:
    """8 bytes become 2 and two scales for each 256; adapters lie whole on every rank."""
    kind = Method(type=method)  # type: ignore[arg-type]
    usual, thrifty = (
        estimate(
            SHAPE, kind, precision="bfloat16", device="cuda", tokens=2048, optimizer=optimizer,  # type: ignore[arg-type]
            spread=Spread(strategy=strategy, ranks=8),  # type: ignore[arg-type]
        )
        for optimizer in ("adamw", "adamw8bit")
    )  # fmt: skip
    saved = (8 - 2 - 8 / 256) * trained_parameters(SHAPE, kind) / sharing
    assert usual.optimizer - thrifty.optimizer == pytest.approx(saved, rel=1e-6)
    assert replace(thrifty, optimizer=usual.optimizer) == usual


@pytest.mark.parametrize("spread", EVERY, ids=lambda spread: spread.label)
@pytest.mark.parametrize("method", ["full", "partial", "lora", "adapter"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_more_ranks_never_need_more(spread: Spread, method: str, precision: str) -> None:
    needs = [
        estimate(
            SHAPE, Method(type=method), precision=precision, device="cuda", tokens=2048,  # type: ignore[arg-type]
            spread=Spread(
                strategy=spread.strategy, ranks=ranks, zero_stage=spread.zero_stage,
                offload_optimizer=spread.offload_optimizer, offload_parameters=spread.offload_parameters,
            ),
        )
        for ranks in (1, 2, 3, 8, 64)
    ]  # fmt: skip
    assert [n.total for n in needs] == sorted((n.total for n in needs), reverse=True)
    assert [n.host for n in needs] == sorted((n.host for n in needs), reverse=True)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_stage_of_zero_needs_no_more_than_the_one_before(method: str) -> None:
    kind = Method(type=method)  # type: ignore[arg-type]
    needs = [
        estimate(
            SHAPE, kind, precision="bfloat16", device="cuda", tokens=1,
            spread=Spread(strategy="deepspeed", ranks=64, zero_stage=stage),
        ).least
        for stage in (1, 2, 3)
    ]  # fmt: skip
    assert needs == sorted(needs, reverse=True)


def test_what_is_offloaded_lies_in_the_node_and_on_a_cpu_that_is_the_same_memory() -> None:
    on = Spread(strategy="deepspeed", ranks=2, zero_stage=3)
    off = Spread(strategy="deepspeed", ranks=2, zero_stage=3, offload_optimizer=True, offload_parameters=True)
    full = Method(type="full")

    def need(spread: Spread, device: str) -> tuple[int, int]:
        made = estimate(SHAPE, full, precision="bfloat16", device=device, tokens=1, spread=spread)  # type: ignore[arg-type]
        return made.least, made.host

    second = 4 * PARAMETERS // 2  # offloaded moments bring a copy of the weights with them
    assert need(off, "cuda")[0] + need(off, "cuda")[1] == need(on, "cuda")[0] + second
    assert need(off, "cuda")[1] == 16 * PARAMETERS // 2
    assert need(off, "cpu") == (need(on, "cpu")[0] + second, 0)


def test_shards_are_those_of_a_node_where_it_has_several_processes() -> None:
    parts = Parts(trained=PARAMETERS, frozen=0, gathered=0)
    two_nodes = Spread(strategy="fsdp", ranks=16, shards=8).share(parts, low=True, trains_the_model=True)
    one_node = Spread(strategy="fsdp", ranks=8).share(parts, low=True, trains_the_model=True)
    assert two_nodes == one_node
