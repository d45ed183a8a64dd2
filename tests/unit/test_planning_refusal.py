"""The preflight refuses what cannot fit before the gang waits, and says the smallest change that would."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.agent.preflight import check_memory
from finetune_trainer.planning import machine
from finetune_trainer.planning.table import Workload
from tests.support.planning_models import LLAMA_3B, SMOLLM2, plan


@pytest.mark.parametrize(
    ("memory", "changes", "hint"),
    [
        ("2Gi", {"training": {"microBatchTokens": 8192}}, "training.microBatchTokens: "),
        ("1700Mi", {"method": {"type": "full"}}, "method.type: lora"),
        ("64Mi", {}, "Give each process"),
    ],
)
def test_a_pod_that_is_too_small(
    monkeypatch: pytest.MonkeyPatch, memory: str, changes: dict[str, Any], hint: str
) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: [])
    with pytest.raises(FinetuneError) as raised:
        check_memory(plan(resources={"limits": {"memory": memory}}, **changes), SMOLLM2)
    assert raised.value.reason is Reason.InsufficientMemory
    assert hint in raised.value.hint


def test_a_gpu_that_is_too_small_for_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: [24 << 30] * 8)
    eight = {"processesPerNode": 8, "method": {"type": "full"}}
    with pytest.raises(FinetuneError) as raised:
        check_memory(plan(strategy={"type": "ddp"}, **eight), LLAMA_3B)
    assert raised.value.hint == "Set strategy.type: fsdp."
    check_memory(plan(**eight), LLAMA_3B)  # auto would shard it


def test_the_fewest_nodes_that_an_elastic_job_may_have_must_hold_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: [24 << 30])
    sharded = {"method": {"type": "full"}, "strategy": {"type": "fsdp"}}
    check_memory(plan(nodes=8, **sharded), LLAMA_3B)
    check_memory(plan(nodes={"min": 8, "max": 16}, **sharded), LLAMA_3B)
    with pytest.raises(FinetuneError) as raised:
        check_memory(plan(nodes={"min": 1, "max": 8}, **sharded), LLAMA_3B)
    assert raised.value.reason is Reason.InsufficientMemory
    assert raised.value.message.startswith("with 1 node(s), the minimum of spec.nodes: training needs about")
    assert raised.value.hint.startswith("Raise nodes.min, or use another fix: ")


def test_what_training_needs_is_logged_once_the_rows_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    check_memory(plan(), SMOLLM2)
    assert capsys.readouterr().err == ""
    check_memory(plan(), SMOLLM2, Workload(rows=100, tokens=2000, longest=40))
    assert capsys.readouterr().err.count("training needs about") == 1
