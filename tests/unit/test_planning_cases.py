"""Jobs that people ask about, with what is published of them: what fits, what does not, and the change that would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent.preflight import check_memory
from finetune_trainer.planning import machine
from finetune_trainer.planning.advice import smallest_change
from finetune_trainer.planning.devices import gpu
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.table import Planner, Workload
from tests.support.planning_models import EIGHT, GIB, LLAMA_3B, LLAMA_8B, llama, plan, spec

LLAMA_70B = llama(hidden=8192, layers=80, intermediate=28672, key_value=1024, vocabulary=128256, tied=False)
AGAIN = {"activationCheckpointing": True}


def planner(
    shape: ModelShape,
    *,
    memory: int = 80,
    sequence: int = 2048,
    mean: int = 200,
    longest: int | None = None,
    **job: Any,
) -> Planner:
    data = {"train": [{"uri": "file:///train.jsonl"}], "sequenceLength": sequence}
    workload = Workload(rows=20_000, tokens=20_000 * mean, longest=longest)
    made = spec(data=data, **job)
    return Planner(spec=made, shape=shape, device=gpu("H100", memory=memory * GIB), workload=workload)


def changed(job: FineTuneJobSpec, hint: str) -> FineTuneJobSpec:
    """The manifest with what a hint says to set."""
    assert hint.startswith("Set "), hint
    content = job.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for setting in hint.removeprefix("Set ").removesuffix(".").split(" and "):
        path, _, value = setting.partition(": ")
        place = content
        *above, last = path.split(".")
        for name in above:
            place = place.setdefault(name, {})
        place[last] = yaml.safe_load(value)
    return FineTuneJobSpec.model_validate(content, strict=False)


def test_the_longest_row_decides_and_not_the_mean() -> None:
    """LoRA of a 70B with fsdp on 8 x 80 GB, rows of 1,000 tokens on average and of up to 4,096."""
    known = planner(LLAMA_70B, sequence=4096, mean=1000, longest=1000, **EIGHT)
    unknown = planner(LLAMA_70B, sequence=4096, mean=1000, **EIGHT)
    short, long = (made.row(made.spec.method, made.spread("fsdp")) for made in (known, unknown))
    assert short.fits
    assert short.need.total / GIB == pytest.approx(65, abs=2)
    assert not long.fits
    assert long.tokens == 4096
    assert long.need.total / GIB == pytest.approx(163, rel=0.05)


def test_a_row_is_computed_whole_whatever_the_micro_batch() -> None:
    made = planner(LLAMA_8B, sequence=8192, longest=8192, training={"microBatchTokens": 1024})
    assert made.row(made.spec.method, made.spread("ddp")).tokens == 8192


def test_320_short_rows_need_no_memory_that_they_never_fill() -> None:
    made = replace(planner(LLAMA_3B), workload=Workload(rows=320, tokens=320 * 50, longest=100))
    row = made.row(made.spec.method, made.spread("ddp"))
    assert row.tokens == 32 * 50 + 100
    assert row.need.total < 16 * GIB, "27 GiB where the micro-batch is filled"


@pytest.mark.parametrize("longest", [256, 512, None])
def test_qlora_of_a_70b_on_one_card_of_48_gib_is_refused(monkeypatch: pytest.MonkeyPatch, longest: int | None) -> None:
    """Its weights in 4 bits, adapters and their moments are 40 GiB."""
    monkeypatch.setattr(machine, "gpu_memory", lambda: [48 * GIB])
    made = planner(LLAMA_70B, memory=48, longest=longest, method={"type": "qlora"})
    job = plan(method={"type": "qlora"}, resources={"limits": {"nvidia.com/gpu": 1}})
    with pytest.raises(FinetuneError) as raised:
        check_memory(job, LLAMA_70B, made.workload)
    assert raised.value.reason is Reason.InsufficientMemory
    fitting = replace(made, spec=changed(job.spec, raised.value.hint))
    assert fitting.fits(fitting.spec.method, fitting.spread("fsdp" if fitting.spec.world_size > 1 else "ddp"))
    if longest is None:
        assert "nvidia.com/gpu: 2" in raised.value.hint, "no setting of one card suffices for rows of 2,048 tokens"


@pytest.mark.parametrize(("training", "most"), [({}, 80), (AGAIN, 48)])
def test_lora_of_an_8b_with_8192_tokens_fits_80_gib(training: dict[str, Any], most: int) -> None:
    made = planner(LLAMA_8B, sequence=8192, mean=4000, longest=8192, training={"microBatchTokens": 8192, **training})
    row = made.row(made.spec.method, made.spread("ddp"))
    assert row.fits
    assert row.tokens == 8192
    assert row.need.total < most * GIB


def test_an_8b_in_full_fits_8_cards_of_80_gib_in_shards() -> None:
    """torchtitan trains Llama-3.1-8B on 8 H100 with FSDP2 at 8,192 tokens, and has to recompute blocks for it."""
    job = {"method": {"type": "full"}, "sequence": 8192, "longest": 8192, "mean": 8192, **EIGHT}
    made = planner(LLAMA_8B, **job)  # type: ignore[arg-type]
    assert not made.row(made.spec.method, made.spread("ddp")).fits
    assert not made.row(made.spec.method, made.spread("fsdp")).fits
    assert smallest_change(made, made.spread("fsdp")) == "Set training.activationCheckpointing: true."
    again = planner(LLAMA_8B, training=AGAIN, **job)  # type: ignore[arg-type]
    assert again.row(again.spec.method, again.spread("fsdp")).fits
    short = planner(LLAMA_8B, **{**job, "sequence": 2048, "longest": 2048, "mean": 500})  # type: ignore[arg-type]
    assert short.row(short.spec.method, short.spread("fsdp")).fits


@pytest.mark.parametrize("method", ["full", "partial", "lora", "dora", "qlora", "adapter"])
@pytest.mark.parametrize("memory", [16, 24, 48])
@pytest.mark.parametrize("processes", [1, 8])
def test_what_a_hint_says_to_set_fits(method: str, memory: int, processes: int) -> None:
    made = planner(LLAMA_8B, memory=memory, longest=1500, method={"type": method}, processesPerNode=processes)
    spread = made.spread("ddp")
    if made.fits(made.spec.method, spread):
        return
    hint = smallest_change(made, spread)
    if hint.startswith("Give each process"):
        assert memory == 16
        return
    if "sequenceLength" in hint:
        tokens = int(hint.split("sequenceLength: ")[1].split()[0])
        shorter = made.spec.data.model_copy(update={"sequence_length": tokens})
        job = made.spec.model_copy(update={"given_data": shorter})
    else:
        job = changed(made.spec, hint)
    after = replace(made, spec=job)
    strategy = job.strategy.type if job.strategy.type != "auto" else "ddp"
    assert after.fits(job.method, after.spread(strategy)), hint


def test_the_longest_row_that_was_read_decides_before_the_gang_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """8B LoRA on 24 GiB: rows of 256 tokens fit, those of 2,048 do not."""
    monkeypatch.setattr(machine, "gpu_memory", lambda: [24 * GIB])
    check_memory(plan(), LLAMA_8B)
    check_memory(plan(), LLAMA_8B, Workload(rows=100, tokens=20_000, longest=256))
    with pytest.raises(FinetuneError) as raised:
        check_memory(plan(), LLAMA_8B, Workload(rows=100, tokens=20_000, longest=2048))
    assert raised.value.hint == "Set training.activationCheckpointing: true."
