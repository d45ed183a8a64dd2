"""Times against public figures, the row to begin with, and the smallest change that makes a job fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.failures import FinetuneError
from finetune_api.methods import Lora, Method
from finetune_trainer.planning.advice import recommended, smallest_change
from finetune_trainer.planning.devices import Device, gpu, nameless, this_machine
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.speed import step_seconds
from finetune_trainer.planning.spread import Spread
from finetune_trainer.planning.table import Planner, Workload
from tests.support.planning_models import EIGHT, GIB, LLAMA_3B, LLAMA_8B, SMOLLM2, llama, spec

CORE = replace(nameless("cpu", memory=16 * GIB), fp32=80e9, bandwidth=10e9, utilisation=0.75, ramp=32)


def planner(
    device: Device,
    shape: ModelShape = LLAMA_3B,
    *,
    rows: int | None = 20_000,
    longest: int | None = 256,
    **changes: Any,
) -> Planner:
    """Rows of 210 tokens on average."""
    workload = Workload(rows=rows, tokens=210 * rows if rows else None, longest=longest)
    return Planner(spec=spec(**changes), shape=shape, device=device, workload=workload)


@pytest.mark.parametrize(
    ("shape", "method", "device", "spread", "tokens", "row", "measured"),
    [
        # torchtitan: Llama-3.1-8B in full, 8 H100 with FSDP2, 8192 tokens each.
        (LLAMA_8B, "full", gpu("H100"), Spread(strategy="fsdp", ranks=8), 8 * 8192, 8192, 8 * 5762),
        # PEFT's method comparison on an L40S: 840 tokens a step.
        (LLAMA_3B, "lora", gpu("L40S"), Spread(), 840, 256, 4457),
        (LLAMA_3B, "full", gpu("L40S"), Spread(), 840, 256, 1955),
        # One core of 80 GFLOP/s: 9.0 s a step of 4×256 tokens, 13.1 s in full.
        (SMOLLM2, "lora", CORE, Spread(), 1024, 256, 1024 / 9.0),
        (SMOLLM2, "full", CORE, Spread(), 1024, 256, 1024 / 13.1),
    ],
)
def test_times_are_within_a_third_of_public_figures(
    shape: ModelShape, method: str, device: Device, spread: Spread, tokens: int, row: int, measured: float
) -> None:
    seconds = step_seconds(
        shape, Method(type=method), precision="bfloat16" if device.kind == "cuda" else "float32", device=device,  # type: ignore[arg-type]
        spread=spread, tokens=tokens, at_once=tokens // spread.ranks, row=row, network=device.link,
    )  # fmt: skip
    assert tokens / seconds == pytest.approx(measured, rel=1 / 3)


@pytest.mark.parametrize(("method", "least"), [("lora", 1.8), ("full", 1.4)])
def test_a_node_that_holds_the_model_gathers_it_within(method: str, least: float) -> None:
    """Two nodes of eight: gathered over the network between them, a LoRA of a 70B took nine times as long."""
    rates = []
    for nodes in (1, 2):
        changes = {**EIGHT, "nodes": nodes, "method": {"type": method}, "training": {"batchSize": 1024}}
        made = planner(gpu("H100"), LLAMA_8B, **changes)
        rates += [
            row.tokens_per_second for row in made.rows() if (row.method.type, row.spread.label) == (method, "fsdp")
        ]
    assert least < rates[1] / rates[0] <= 2.01


def test_every_method_and_strategy_has_a_row() -> None:
    rows = planner(gpu("H100"), resources={"limits": {"nvidia.com/gpu": 4}}).rows()
    labels = [(row.method.type, row.spread.label) for row in rows]
    assert ("full", "ddp") in labels
    assert [label for method, label in labels if method == "full"] == [
        "ddp", "fsdp", "deepspeed zero 1", "deepspeed zero 2", "deepspeed zero 3"
    ]  # fmt: skip
    assert [label for method, label in labels if method == "lora"] == ["ddp", "fsdp", "deepspeed zero 3"]
    assert [label for method, label in labels if method in ("dora", "qlora")] == ["ddp", "fsdp"] * 2
    assert ("prompt", "fsdp") not in labels, "what cannot be sharded is not offered"
    assert "probe" not in {method for method, _ in labels}, "only of classification"
    assert {spread for _, spread in ((r.method.type, r.spread.label) for r in planner(gpu("H100")).rows())} == {"ddp"}


def test_zero_as_the_job_asks_for_it_has_a_row_of_its_own() -> None:
    asked = {"type": "deepspeed", "zeroStage": 3, "offload": "all"}
    for processes in (1, 4):  # offloading helps one process too
        rows = planner(gpu("H100"), strategy=asked, processesPerNode=processes).rows()
        own = [row for row in rows if row.spread.offload_parameters]
        assert {row.method.type for row in own} == {"full", "partial", "lora", "adapter"}
        assert all(row.spread.label == "deepspeed zero 3 offload" and row.need.host for row in own)


def test_what_is_sharded_leaves_room_for_more_tokens_at_once() -> None:
    made = planner(gpu("H100", memory=40 * GIB), method={"type": "full"}, **EIGHT)
    tokens = {row.spread.label: row.tokens for row in made.rows() if row.method.type == "full"}
    assert tokens["ddp"] == made.row_tokens, "nothing fits, so it is the least"
    assert tokens["ddp"] < tokens["deepspeed zero 2"] < tokens["fsdp"]


def test_steps_with_moments_in_8_bits_take_longer_and_zero_does_not_carry_them() -> None:
    thrifty = {"training": {"optimizer": "adamw8bit"}, "method": {"type": "full"}, **EIGHT}
    usual, packed = (planner(gpu("H100"), **changes) for changes in ({**EIGHT, "method": {"type": "full"}}, thrifty))
    (full,) = [row for row in packed.rows() if row.method.type == "full" and row.spread.strategy == "fsdp"]
    (before,) = [row for row in usual.rows() if row.method.type == "full" and row.spread.strategy == "fsdp"]
    assert full.tokens_per_second < before.tokens_per_second
    assert not [row for row in packed.rows() if row.spread.strategy == "deepspeed"]


def test_the_own_method_keeps_its_settings() -> None:
    rows = planner(gpu("H100"), method={"type": "lora", "lora": {"rank": 2}}).rows()
    assert next(row.trained for row in rows if row.method.type == "lora") == 3_039_232


def test_time_is_not_made_up() -> None:
    assert {row.seconds for row in planner(gpu("H100"), rows=None).rows()} == {None}
    bounded = planner(gpu("H100"), rows=None, training={"maxSteps": 10}).rows()
    assert all(row.seconds for row in bounded)


@pytest.mark.parametrize(("rows", "steps"), [(None, 20), (100, 20), (100_000, 20)])
def test_a_plan_counts_the_steps_that_a_run_makes(rows: int | None, steps: int) -> None:
    """100 rows in batches of 8 are 13 steps an epoch; maxSteps passes over them again."""
    made = planner(gpu("H100"), rows=rows, training={"epochs": 1, "batchSize": 8, "maxSteps": 20})
    assert made.steps == steps
    assert planner(gpu("H100"), rows=100, training={"epochs": 3, "batchSize": 8}).steps == 39


def test_cost_is_that_of_all_devices() -> None:
    made = replace(planner(gpu("H100"), resources={"limits": {"nvidia.com/gpu": 2}}), hourly=3.0)
    row = made.rows()[0]
    assert row.seconds is not None
    assert row.cost == pytest.approx(row.seconds / 3600 * 2 * 3.0)


@pytest.mark.parametrize(
    ("memory", "rows", "changes", "method", "strategy", "why"),
    [
        (80, 20_000, {}, "lora", "ddp", "20,000 examples"),
        (80, 50, {}, "lora", "ddp", "50 examples are few"),
        (80, 50, {"data": {"train": [{"uri": "file:///t.jsonl"}], "format": "classification"}}, "probe", "ddp", "few"),
        (80, 20_000, {"data": {"train": [{"uri": "file:///t.jsonl"}], "format": "classification"}}, "lora", "ddp",
         "a probe costs next to nothing, and is the baseline to beat"),
        (80, 1_000_000, {}, "full", "ddp", "tokens per epoch"),
        (40, 1_000_000, {"resources": {"limits": {"nvidia.com/gpu": 8}}}, "full", "fsdp", "shards it"),
        (8, 20_000, {}, "qlora", "ddp", "lora does not fit"),
    ],
)  # fmt: skip
def test_the_row_to_begin_with(
    memory: int, rows: int, changes: dict[str, Any], method: str, strategy: str, why: str
) -> None:
    made = planner(gpu("H100", memory=memory * GIB), rows=rows, **changes)
    advice = recommended(made.rows(), made)
    assert advice.row is not None
    assert (advice.row.method.type, advice.row.spread.label) == (method, strategy)
    assert why in "; ".join(advice.reasons)


def test_seventy_billion_weights_in_4_bits_fit_two_gpus_of_48_gib_in_shards_alone() -> None:
    large = llama(hidden=8192, layers=80, intermediate=28672, key_value=1024, vocabulary=128256, tied=False)
    made = planner(gpu("H100", memory=48 * GIB), large, processesPerNode=2)
    assert [(r.method.type, r.spread.label) for r in made.rows() if r.fits and r.method.low_rank] == [("qlora", "fsdp")]
    assert smallest_change(made, made.spread("ddp")) == "Set method.type: qlora and strategy.type: fsdp."


def test_nothing_is_recommended_where_nothing_fits() -> None:
    made = planner(gpu("H100", memory=GIB))
    assert recommended(made.rows(), made).row is None


@pytest.mark.parametrize(
    ("memory", "changes", "hint"),
    [
        (24, {"training": {"microBatchTokens": 65536}}, "training.microBatchTokens: "),
        (30, {"method": {"type": "full"}, **EIGHT}, "strategy.type: fsdp"),
        (20, {"method": {"type": "full"}}, "method.type: lora"),
        (45, {"method": {"type": "full"}}, "training.optimizer: adamw8bit"),
        (45, {"method": {"type": "full"}, "strategy": {"type": "deepspeed"}}, "method.type: lora"),
        (7, {}, "method.type: qlora"),
        (1, {}, "Give each process "),
    ],
)
def test_the_smallest_change_that_makes_it_fit(memory: int, changes: dict[str, Any], hint: str) -> None:
    made = planner(gpu("H100", memory=memory * GIB), **changes)
    told = smallest_change(made, made.spread("ddp"))
    assert hint in told
    if "microBatchTokens" in told:
        tokens = int(told.split("microBatchTokens: ")[1].split(";")[0])
        assert made.need(made.spec.method, made.spread("ddp"), tokens=tokens).total <= memory * GIB
        assert made.need(made.spec.method, made.spread("ddp"), tokens=tokens + 64).total > memory * GIB


@pytest.mark.parametrize(
    ("method", "strategy", "changes"),
    [
        ("lora", "ddp", {}),
        ("lora", "deepspeed", {"strategy": {"type": "deepspeed", "zeroStage": 3}, **EIGHT}),
        ("full", "deepspeed", {"strategy": {"type": "deepspeed", "zeroStage": 3}, **EIGHT}),
    ],
)
def test_long_rows_are_computed_whole_so_their_blocks_run_again(
    method: str, strategy: str, changes: dict[str, Any]
) -> None:
    long = {"data": {"train": [{"uri": "file:///t.jsonl"}], "sequenceLength": 16384}, "method": {"type": method}}
    made = replace(
        planner(gpu("H100", memory=40 * GIB), **long, **changes), workload=Workload(rows=100, tokens=100 * 16384)
    )
    assert not made.row(made.spec.method, made.spread(strategy)).fits
    assert smallest_change(made, made.spread(strategy)) == "Set training.activationCheckpointing: true."
    training = made.spec.training.model_copy(update={"activation_checkpointing": True})
    again = replace(made, spec=made.spec.model_copy(update={"training": training}))
    whole, twice = (one.row(one.spec.method, one.spread(strategy)) for one in (made, again))
    assert twice.fits
    assert 1.15 < (twice.seconds or 0) / (whole.seconds or 1) < 1.5


def test_a_gpu_of_no_figures_is_refused_by_the_names_that_have_some() -> None:
    with pytest.raises(FinetuneError) as raised:
        gpu("TPU")
    assert "H100, A100-80, L40S" in raised.value.hint


def test_this_machine_is_shared_by_its_processes() -> None:
    two = this_machine(memory=8 * GIB, processes=2)
    assert two.memory == 4 * GIB
    assert two.fp32 > 1e8
    assert two.bandwidth > 1e7


def test_a_small_rank_is_the_last_resort_before_more_memory() -> None:
    method = Method(lora=Lora(rank=1024))
    made = planner(gpu("H100", memory=int(12.5 * GIB)), method=method.model_dump(by_alias=True, exclude_none=True))
    assert smallest_change(made, made.spread("ddp")).startswith("Set method.")
