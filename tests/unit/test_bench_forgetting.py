"""The table of remedies against forgetting: what it compares, and what a second start does not measure again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.transfer.bench_forgetting import Results, succeeds, table


def _results(file: Path) -> Results:
    found = Results([16, 4], file)
    found.add("none", 1, {"German": -0.5, "English": 0.04}, seconds=50)
    found.add("none", 2, {"German": -0.3, "English": 0.06}, seconds=60)
    found.add("replay 25 %", 1, {"German": -0.47, "English": 0.01}, seconds=70)
    found.add("replay 25 %", 3, {"German": -9.0, "English": 9.0}, seconds=70)
    return found


def test_a_remedy_is_compared_by_the_seeds_that_both_have(tmp_path: Path) -> None:
    relative = _results(tmp_path / "results.jsonl").relative()
    assert relative == {"replay 25 %": pytest.approx((0.75, 0.06))}
    assert succeeds(relative["replay 25 %"])
    assert not succeeds((0.39, 0.0))
    assert not succeeds((0.9, 0.11))


def test_what_was_measured_with_the_same_settings_is_not_measured_again(tmp_path: Path) -> None:
    _results(tmp_path / "results.jsonl")
    again, other = Results([16, 4], tmp_path / "results.jsonl"), Results([17, 4], tmp_path / "results.jsonl")
    assert (again.has("none", 2), again.has("none", 3), other.has("none", 2)) == (True, False, False)
    assert (again.longest, other.longest) == (70, 0)
    assert "| none | -0.400 ± 0.141 | +0.050 ± 0.014 |  |  | 2 |" in table(again)


def test_without_forgetting_there_is_nothing_to_save(tmp_path: Path) -> None:
    found = Results([], tmp_path / "results.jsonl")
    found.add("none", 1, {"German": -0.5, "English": -0.01}, seconds=1)
    found.add("klToBase", 1, {"German": -0.4, "English": -0.02}, seconds=1)
    assert found.relative() == {}
