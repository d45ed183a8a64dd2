"""Does the ladder keep its promises, and what does it save? Simulation of tasks whose truth is known.

    python -m tests.proof.ladder              # a few minutes on one core; writes ladder.md here

The unit tests run the same promises with 300 runs each (tests/unit/test_ladder_simulated.py).
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterator
from pathlib import Path

from finetune_trainer.ladder.rungs import BASE
from tests.support.crossfit_simulation import Learning, simulate_split
from tests.support.crossfit_simulation import simulate as crossfitted
from tests.support.ladder_simulation import Climbed, Rung, Task, share, simulate

RESULT = Path(__file__).with_suffix(".md")
RUNS = 2000
ALPHA = 0.05
COSTS = {"probe": 0.05, "lora": 1.0, "partial": 1.2, "full": 2.3}
"""Relative to one run of lora; full as in PEFT's benchmark on one L40S (4457 and 1955 tokens per second)."""

FAMILY = {
    "nothing to gain": {"probe": 0.0, "lora": 0.0, "partial": 0.0, "full": 0.0},
    "a probe suffices": {"probe": 0.1, "lora": 0.1, "partial": 0.1, "full": 0.1},
    "lora suffices": {"probe": 0.0, "lora": 0.1, "partial": 0.1, "full": 0.1},
    "full is 2 points better": {"probe": 0.03, "lora": 0.1, "partial": 0.1, "full": 0.12},
    "full is 5 points better": {"probe": 0.03, "lora": 0.1, "partial": 0.15, "full": 0.15},
    "full overfits": {"probe": 0.03, "lora": 0.1, "partial": 0.08, "full": 0.05},
}


def task(gains: dict[str, float], *, rows: int = 1000) -> Task:
    rungs = tuple(Rung(method=method, gain=gain, cost=COSTS[method]) for method, gain in gains.items())
    return Task(rungs=rungs, rows=rows)


def promises() -> Iterator[str]:
    bound = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
    yield f"| promise | bound | measured ({RUNS} runs) |"
    yield "|---|---:|---:|"
    for methods in (("lora",), ("probe", "lora"), ("probe", "lora", "partial", "full")):
        equal = Task(rungs=tuple(Rung(method=method) for method in methods), min_gain=0.0)
        found = 1 - share(simulate(equal, runs=RUNS, seed=1), BASE)
        assert found <= bound, (methods, found)
        yield f"| {len(methods)} equal rungs: a step up | ≤ {bound:.3f} | {found:.3f} |"
    better = {"probe": 0.0, "lora": 0.05, "partial": 0.05, "full": 0.05}
    taken = 1 - share(simulate(task(better), runs=RUNS, seed=2), BASE)
    assert taken >= 0.8, taken
    for few in (Learning(rows=100, signal=1.0, rungs=("lora",)), Learning(rows=300), Learning(rows=900)):
        found = 1 - share(crossfitted(few, runs=RUNS, seed=4), BASE)
        assert found <= bound, (few, found)
        what = f"{len(few.rungs)} equal rungs, {few.rows} rows cross-fitted"
        yield f"| {what}: a step up | ≤ {bound:.3f} | {found:.3f} |"
    yield f"| a rung that is 5 points better is taken (1,000 rows, disagreement 0.2) | ≥ 0.800 | {taken:.3f} |"


def few_rows() -> Iterator[str]:
    yield "| rows | gain of all rungs | cross-fitted | split 10 % / 10 % |"
    yield "|---:|---:|---:|---:|"
    for rows in (100, 300, 900):
        for gain in (0.05, 0.1, 0.15, 0.2):
            few = Learning(rows=rows, gain=gain)
            crossed = 1 - share(crossfitted(few, runs=RUNS // 4, seed=5), BASE)
            split = 1 - share(simulate_split(few, held_out=0.2, runs=RUNS // 4, seed=5), BASE)
            yield f"| {rows} | {gain:.2f} | {crossed:.2f} | {split:.2f} |"


def savings() -> Iterator[str]:
    yield "| task | rows | gain: ladder | always lora | always full | cost: ladder | always lora | always full |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, gains in FAMILY.items():
        for rows in (100, 1000):
            climbed = simulate(task(gains, rows=rows), runs=RUNS, seed=3)
            cost = sum(each.spent for each in climbed) / len(climbed)
            yield (
                f"| {name} | {rows:,} | {_mean_gain(climbed, gains):.3f} | {gains['lora']:.3f} | {gains['full']:.3f} | "
                f"{cost:.2f} | {COSTS['lora']:.2f} | {COSTS['full']:.2f} |"
            )


def _mean_gain(climbed: list[Climbed], gains: dict[str, float]) -> float:
    return sum(gains.get(each.best, 0.0) for each in climbed) / len(climbed)


def main() -> None:
    began = time.process_time()
    tables = ["\n".join(promises()), "\n".join(savings()), "\n".join(few_rows())]
    spent = time.process_time() - began
    RESULT.write_text(
        "# The ladder's promises, and what it saves\n\n"
        f"`python -m tests.proof.ladder`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {spent:.0f} s of CPU.\n\n"
        f"{tables[0]}\n\n"
        "Gains are points of accuracy over the base model in truth, costs multiples of one lora run. Rows are those of "
        "the\nselect half of the validation rows; the minimum gain is 0.01. With 100 rows most decisions are "
        f"inconclusive, and the ladder\nstops early.\n\n{tables[1]}\n\n"
        "How often a step up is taken with few rows. The rungs are ridge regressions that learn, on features of which\n"
        "one in twenty tells something; cross-fitted, all rows decide, each by the fit that did not see it. With a\n"
        "split, 10 % of the rows tune and 10 % decide.\n\n"
        f"{tables[2]}\n"
    )
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    main()
