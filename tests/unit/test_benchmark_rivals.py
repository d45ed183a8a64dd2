"""The benchmark beside rivals, as far as it can be checked without them: its rows, its pins, its judgement."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.trainer import rows
from tests.benchmarks.trainer.bench_rivals import SCRIPTS, Found, _judge_all


def run(losses: list[float], *, cpu: float = 1.0, trainable: int = 8) -> dict[str, Any]:
    times = {"cpu": [9.0, cpu], "start": 3.0, "before": 0.0, "peak": 100.0}
    return {"losses": losses, "trainable": trainable, "dtypes": ["float32"], "versions": "none", **times}


@pytest.mark.parametrize("name", rows.ROWS)
def test_rows_name_sides_that_exist(name: str) -> None:
    row = rows.ROWS[name]
    assert all((SCRIPTS / f"{rows.SIDES[side].script}.py").exists() for side in row.sides)
    assert {target.side for target in row.targets} | {target.rival for target in row.targets} <= set(row.sides)


@pytest.mark.parametrize("file", sorted(Path(SCRIPTS).glob("*.txt")), ids=lambda file: file.stem)
def test_every_package_of_a_rival_is_pinned(file: Path) -> None:
    pins = file.read_text().split()
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+", pin) for pin in pins)
    assert any(pin.startswith(f"{file.stem}==") for pin in pins)


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [
        (run([2.0, 1.5], cpu=1.2), 0),
        (run([2.0, 1.5], cpu=1.01), 1),  # misses 0.95
        (run([2.0, 1.502], cpu=1.2), 1),  # another loss: void
        (run([2.0, 1.5], cpu=1.2, trainable=9), 1),  # trains something else: void
        (run([2.0, 1.5, 1.4], cpu=1.2), 0),  # goes on for longer
        (run([2.0], cpu=1.2), 1),  # stopped before
    ],
    ids=["faster", "slower", "loss", "parameters", "longer", "shorter"],
)
def test_what_is_wrong_with_a_row(theirs: dict[str, Any], verdict: int) -> None:
    row = rows.Row(("ours", "hf"), (rows.Target("ours", "hf", 0.95),), lengths=(4,))
    found = {"ours": Found([run([2.0, 1.5])]), "hf": Found([theirs])}
    assert _judge_all("lora", row, found) == verdict


def test_a_void_side_is_no_measure() -> None:
    row = rows.Row(("ours", "hf"), (rows.Target("ours", "hf", 0.95),), lengths=(4,))
    found = {"ours": Found([run([2.0, 1.5])]), "hf": Found([run([3.0, 1.5], cpu=0.1)])}
    assert _judge_all("lora", row, found) == 1  # void, and not also missed
