"""Guards: passed, violated or inconclusive by the whole interval, and how many rows would decide."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_trainer.statistics.calibration import calibration_difference
from finetune_trainer.statistics.diversity import relative_drops
from finetune_trainer.statistics.paired import Paired, difference
from finetune_trainer.transfer.guards import GUARDS, Compared, Facts, Guard, Judgement, Outcome, Share, judge_all

PASSED, VIOLATED, INCONCLUSIVE = Outcome.passed, Outcome.violated, Outcome.inconclusive


def score(gained: int, lost: int, *, rows: int = 1000, name: str = "test", comparisons: int = 1) -> Compared:
    base = np.r_[np.zeros(gained), np.ones(lost), np.ones(rows - gained - lost)]
    tuned = np.r_[np.ones(gained), np.zeros(lost), np.ones(rows - gained - lost)]
    found = difference(Paired.scores(base=base, tuned=tuned), comparisons=comparisons)
    return Compared.of(name, "slice" if comparisons > 1 else "test", found)


def general(rise: float, *, documents: int = 200) -> Compared:
    """Bits per byte that rise by about so much, with a spread of 0.1 over documents."""
    random = np.random.default_rng(4)
    sizes = np.full(documents, 500.0)
    base = random.normal(1, 0.2, documents)
    tuned = base + rise + random.normal(0, 0.1, documents)
    nats = np.log(2) * sizes
    paired = Paired.bits_per_byte(base=base * nats, tuned=tuned * nats, sizes=sizes)
    return Compared.of("general", "general", difference(paired))


def one(key: str, bound: float, facts: Facts) -> Judgement:
    (judged,) = judge_all({key: bound}, facts)
    return judged


@pytest.mark.parametrize(
    ("gained", "lost", "bound", "verdict"),
    [
        (60, 10, 0.0, PASSED),
        (60, 10, 0.045, INCONCLUSIVE),
        (60, 10, 0.1, VIOLATED),
        (30, 28, 0.0, INCONCLUSIVE),
        (10, 60, 0.0, VIOLATED),
    ],
)
def test_gain(gained: int, lost: int, bound: float, verdict: Outcome) -> None:
    assert one("minGain", bound, Facts(main=score(gained, lost))).verdict is verdict


@pytest.mark.parametrize(("rise", "verdict"), [(0.01, PASSED), (0.05, INCONCLUSIVE), (0.09, VIOLATED)])
def test_forgetting(rise: float, verdict: Outcome) -> None:
    judged = one("forgetting.maxBitsPerByteIncrease", 0.05, Facts(general=general(rise)))
    assert judged.verdict is verdict
    assert (judged.rows_needed is not None) == (verdict is INCONCLUSIVE)


def test_the_rows_that_would_decide_do_decide() -> None:
    few = one("forgetting.maxBitsPerByteIncrease", 0.05, Facts(general=general(0.035, documents=60)))
    assert few.verdict is INCONCLUSIVE
    assert few.rows_needed is not None
    assert 60 < few.rows_needed < 2000
    # The same difference and spread with so many rows: each limit moves with the root of their number.
    assert few.value is not None
    assert few.high is not None
    half = (few.high - few.value) * (60 / few.rows_needed) ** 0.5
    assert few.value + half <= 0.05


def test_a_value_on_its_bound_is_decided_by_no_number_of_rows() -> None:
    facts = Facts(main=score(30, 30))
    assert one("minGain", 0.0, facts).rows_needed is None


def test_the_worst_slice_decides() -> None:
    good, unsure, bad = (
        score(50, 10, name="a", comparisons=3),
        score(60, 80, name="b", comparisons=3),
        score(10, 120, name="c", comparisons=3),
    )
    judged = one("slices.maxRegression", 0.05, Facts(slices=(good, unsure, bad)))
    assert (judged.verdict, judged.on, judged.value) == (VIOLATED, "c", pytest.approx(0.11))
    judged = one("slices.maxRegression", 0.03, Facts(slices=(good, unsure)))
    assert (judged.verdict, judged.on) == (INCONCLUSIVE, "b")
    judged = one("slices.maxRegression", 0.03, Facts(slices=(good,)))
    assert (judged.verdict, judged.on) == (PASSED, "a")
    better = score(90, 10, name="d", comparisons=2)
    for order in ((good, better), (better, good)):
        assert one("slices.maxRegression", 0.03, Facts(slices=order)).on == "a"


def test_calibration() -> None:
    random = np.random.default_rng(8)
    scores = random.normal(0, 2, (2000, 3))
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    gold = (chances.cumsum(axis=1) > random.random((2000, 1))).argmax(axis=1)
    worse = Compared.of("test", "test", calibration_difference(scores, 3 * scores, gold))
    same = Compared.of("test", "test", calibration_difference(2 * scores, 2.01 * scores, gold))
    assert one("calibration.maxIncrease", 0.03, Facts(calibration=worse)).verdict is VIOLATED
    assert one("calibration.maxIncrease", 0.03, Facts(calibration=same)).verdict is PASSED


def test_collapse_finds_a_model_that_loops_and_passes_one_that_does_not() -> None:
    random = np.random.default_rng(6)
    texts = [random.integers(0, 500, 60).tolist() for _ in range(40)]
    others = [random.integers(0, 500, 30).tolist() for _ in range(40)]
    loops = [text[:8] * 8 for text in texts]

    def judged(tuned: list[list[int]]) -> Judgement:
        drops = relative_drops(list(zip(texts, tuned, strict=True)))
        return one("collapse.maxDrop", 0.2, Facts(drops=drops, prompts=40))

    assert (judged(loops).verdict, judged(loops).on) == (VIOLATED, "distinct-2")
    assert judged(others).verdict is PASSED
    few = one("collapse.maxDrop", 0.2, Facts(prompts=5))
    assert (few.verdict, few.reason) == (INCONCLUSIVE, "5 generated texts are too few")


@pytest.mark.parametrize(
    ("hits", "rows", "verdict", "needed"),
    [(128, 128, PASSED, None), (8, 8, INCONCLUSIVE, 72), (100, 128, VIOLATED, None), (127, 128, PASSED, None)],
)
def test_stops(hits: int, rows: int, verdict: Outcome, needed: int | None) -> None:
    """All of n stop: the lower limit is .025^(1/n), above .95 from 72 on."""
    judged = one("generation.minStops", 0.95, Facts(stops=Share(hits=hits, rows=rows)))
    assert judged.verdict is verdict
    assert judged.rows_needed is None if needed is None else judged.rows_needed == pytest.approx(needed, abs=1)


@pytest.mark.parametrize("guard", GUARDS.values(), ids=list(GUARDS))
def test_every_guard_is_inconclusive_with_a_reason_where_nothing_was_measured(guard: Guard) -> None:
    judged = guard.judge(Facts(), 0.1)
    assert (judged.name, judged.verdict, judged.value) == (guard.key, INCONCLUSIVE, None)
    assert judged.reason
    assert guard.needs
    assert "{value}" in guard.says
    assert "{bound}" in guard.says


def test_only_guards_that_are_written_run_and_others_are_refused() -> None:
    assert [each.name for each in judge_all({"minGain": 0.0}, Facts())] == ["minGain"]
    with pytest.raises(KeyError, match="maxGain"):
        judge_all({"maxGain": 0.0}, Facts())
