"""The tables of domains and of few rows: what counts as a remedy, and how seeds are shown."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.transfer.bench_domains import better_and_shorter, fewer_flags, merge, table


def test_a_remedy_leaves_fewer_slices_flagged_in_all_seeds_together() -> None:
    assert fewer_flags({"alone": _flags(2, 2), "mixed": _flags(1, 0), "scaled": _flags(0, 2)})
    assert not fewer_flags({"alone": _flags(2, 2), "mixed": _flags(0, 0), "scaled": _flags(2, 2)})


def _flags(*counts: int) -> list[dict[str, float]]:
    return [{"slices flagged": float(count)} for count in counts]


def test_early_stopping_is_better_and_shorter_in_each_seed() -> None:
    plain, other = [{"test": 0.1, "steps": 100.0}] * 2, [{"test": -0.1, "steps": 100.0}] * 2
    stopped = {"test": 0.02, "steps": 70.0}
    assert better_and_shorter({"all": plain, "stopped": [stopped] * 2, "lora": other})
    assert not better_and_shorter({"all": plain, "stopped": [stopped, {"test": 0.02, "steps": 100.0}], "lora": other})
    assert not better_and_shorter({"all": plain, "stopped": [stopped, {"test": 0.11, "steps": 70.0}], "lora": other})


def test_measured_values_have_a_spread_and_counts_are_listed() -> None:
    found = {"alone": [{"test": -0.5, "slices flagged": 2.0}, {"test": -0.7, "slices flagged": 1.0}]}
    assert "| alone | −0.600 ± 0.141 | 2, 1 |" in table(found)


def test_changes_reach_into_the_manifest_and_none_removes_a_field() -> None:
    spec: dict[str, Any] = {"method": {"type": "lora", "lora": {"rank": 16}}, "training": {"maxSteps": 5}}
    merge(spec, {"method": {"type": "full", "lora": None}, "training": {"evaluateEvery": 1}})
    assert spec == {"method": {"type": "full"}, "training": {"maxSteps": 5, "evaluateEvery": 1}}
