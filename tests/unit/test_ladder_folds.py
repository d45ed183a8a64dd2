"""Cross-fitting: folds of the training rows, what is run for them, and what is decided on their rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent.home import Home
from finetune_trainer.agent.rungs import LadderRun
from finetune_trainer.data.load import load_datasets
from finetune_trainer.data.split import fold_of
from finetune_trainer.ladder.decision import Outcome, variance_of
from finetune_trainer.ladder.derived import of_fold, of_rung
from finetune_trainer.ladder.rules import FEW_ROWS, FOLDS, Facts, choose, folds_of
from finetune_trainer.planning.forecast import Forecast
from finetune_trainer.statistics.differences import FEWEST_ROWS
from finetune_trainer.transfer.records import DataSet, of_rows, pooled
from tests.support.datasets import spec_of
from tests.support.ladder_simulation import decided
from tests.support.made_rungs import Killed, Machine, job
from tests.support.tokenizers import tokenizer_folder, write_jsonl

COUNT = 4
HALF = np.random.default_rng(3).random(200) < 0.5


def keys(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 2**63, count).astype(np.uint64)


def folds(own: np.ndarray, twins: np.ndarray, held: np.ndarray, *, grouped: bool = False) -> np.ndarray:
    """(folds, rows)"""
    return np.array([fold_of(own, twins, held, grouped=grouped, index=at, count=COUNT) for at in range(COUNT)])


def test_each_row_that_is_not_held_out_is_in_one_fold_and_folds_are_alike() -> None:
    own, held = keys(200), np.zeros(200, np.bool_)
    held[:20] = True
    found = folds(own, own, held)
    assert (found.sum(axis=0) == ~held).all()
    assert set(found.sum(axis=1)) == {45}
    assert (folds(own[::-1], own[::-1], held[::-1]) == found[:, ::-1]).all(), "the order of the files does not matter"


def test_groups_and_rows_of_the_same_text_are_never_on_both_sides() -> None:
    twins, free = keys(50).repeat(4), np.zeros(200, np.bool_)
    found = folds(keys(200), twins, free)
    for inside in found:
        assert not set(twins[inside]) & set(twins[~inside])
    groups = keys(10).repeat(20)
    found = folds(groups, twins, free, grouped=True)
    for inside in found:
        assert not set(groups[inside]) & set(groups[~inside])
    shared = twins.copy()
    shared[::20] = 7  # the same text in every group
    assert not folds(groups, shared, free, grouped=True)[:, ::20].any()


def test_one_group_alone_is_in_no_fold_so_that_some_rows_are_trained_on() -> None:
    assert not folds(keys(200), np.full(200, 5, np.uint64), np.zeros(200, np.bool_)).any()


def test_a_fold_is_not_made_of_rows_that_are_too_long_to_be_trained_on(tmp_path: Path) -> None:
    rows = [{"prompt": f"{row} {'long ' * (200 * (row % 2))}", "completion": "yes"} for row in range(40)]
    train, model = write_jsonl(tmp_path / "train.jsonl", *rows), tokenizer_folder(tmp_path / "model")
    spec = spec_of(train, sequenceLength=64, overlong="drop")
    found = [
        load_datasets(spec, tokenizer_path=model, cache=tmp_path / "cache", seed=1, fold=(at, 18)) for at in range(18)
    ]
    sizes = [len(data.fold) if data.fold else 0 for data in found]
    assert min(sizes) > 0
    assert {size + len(data.train) for size, data in zip(sizes, found, strict=True)} == {sum(sizes)}


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        (999, {}, FOLDS),
        (1000, {}, 0),
        (19, {}, 0),
        (None, {}, 0),
        (100, {"data": {"validation": {"fraction": 0.2}}}, FOLDS),
        (100, {"data": {"validation": {"uri": "s3://corp/v.jsonl"}}}, 0),
        (5000, {"ladder": {"folds": 3}}, 3),
        (100, {"ladder": {"folds": 0}}, 0),
    ],
)
def test_when_decisions_are_cross_fitted(
    rows: int | None, changes: dict[str, dict[str, object]], expected: int
) -> None:
    data = {"train": [{"uri": "s3://corp/t.jsonl"}], **changes.get("data", {})}
    asked = {
        "model": {"uri": "hf://org/m"}, "method": {"type": "auto"}, "output": {"uri": "s3://corp/out"}, "data": data,
        "ladder": changes.get("ladder", {}),
    }  # fmt: skip
    assert FEW_ROWS[0] == FEWEST_ROWS
    assert folds_of(FineTuneJobSpec.model_validate(asked, strict=False), rows) == expected


def test_folds_count_as_fewer_rows_and_an_inconclusive_decision_says_how_many_validation_rows_would_decide() -> None:
    """260 rows of 5 folds count as 260 / 2.25 = 115.6, of which 0.2615 disagree. MDE = 2.97 · √(0.2615 / 115.6) = 0.141
    with an error of 0.05 / 3; (0.141 / 0.05)² · 2 · 115.6 = 1,840: as many as without folds."""
    assert (variance_of(5), variance_of(2), variance_of(0)) == (2.25, 3.0, 1.0)
    plain, crossed = (decided(42, 26, 260, rungs=3, min_gain=0.05, folds=count) for count in (0, 5))
    assert crossed.outcome is Outcome.inconclusive
    assert plain.low is not None
    assert crossed.low is not None
    assert crossed.low < plain.low
    assert (plain.rows_needed, crossed.rows_needed, crossed.rows) == (1_900, 1_900, 260)
    assert "about 1,900 validation rows would show 0.05" in crossed.reason
    assert decided(3, 0, 15, rungs=3, min_gain=0.05, folds=5).rows_needed == 40


def test_rows_of_folds_are_joined_and_one_without_rows_takes_no_column_away() -> None:
    def part(*names: str, score: list[float] | None = None) -> DataSet:
        ones = [1.0] * len(names)
        rows = of_rows(row=names, nats=ones, sizes=[1] * len(names), tokens=[1] * len(names), score=score)
        return DataSet(name="validation", kind="validation", models={"base": rows, "tuned": rows}, labels=("a",))

    empty = DataSet(name="validation", kind="validation", models={})
    whole = pooled([empty, part("x", "y", score=[0.0, 1.0]), part("z", score=[1.0])])
    assert whole.models["tuned"].row.tolist() == ["x", "y", "z"]
    assert whole.models["tuned"].score is not None
    assert whole.models["tuned"].score.tolist() == [0, 1, 1]
    assert whole.labels == ("a",)
    assert pooled([part("x", score=[1.0]), part("y")]).models["base"].score is None


def test_the_run_of_a_fold_decides_nothing_else(tmp_path: Path) -> None:
    made = job(tmp_path, guards={"forgetting": {}}, **{"data.general": {"uri": "s3://corp/g.txt"}})
    rung = of_rung(made, "lora")
    first, other = of_fold(rung, 0, COUNT), of_fold(rung, 1, COUNT)
    assert first.spec.guards.forgetting is None
    assert first.spec.method == rung.spec.method
    assert first.spec.output.uri == f"{rung.spec.output.uri}/folds/4/0"
    assert len({each.metadata.uid for each in (rung, first, other, of_fold(rung, 0, 5))}) == 4


def ladder(folder: Path, machine: Machine, said: list[str] | None = None) -> LadderRun:
    made = job(folder, **{"ladder.rungs": ["probe", "lora"]})
    rungs = choose(Facts(chosen=("probe", "lora")))
    foreseen = Forecast(choice=rungs, estimates=dict.fromkeys(("probe", "lora"), 0.1), folds=COUNT)
    return LadderRun(
        job=made, foresee=lambda: foreseen, run_one=machine.run_one, say=(said if said is not None else []).append,
        save=Home(folder / "home").save,
    )  # fmt: skip


def test_a_rung_trains_once_for_the_artifact_and_once_for_each_fold_whose_rows_decide(tmp_path: Path) -> None:
    machine, said = Machine({"probe": 0.6, "lora": 0.8}), list[str]()
    ended, words = ladder(tmp_path, machine, said).to_the_end()
    assert words.failure_class is None
    assert machine.trained == ["probe", "lora"]
    assert machine.folds == [(method, index) for method in ("probe", "lora") for index in range(COUNT)]
    told = ended.status.ladder
    assert told is not None
    assert [(rung.decision, rung.rows) for rung in told.rungs] == [("taken", 2000), ("taken", 2000)]
    assert [published.uid for published in machine.published] == ["u1-lora"]
    assert "decisions are cross-fitted in 4 folds" in said[0]


@pytest.mark.parametrize("last", [1, 3, 5, 6])
def test_killed_after_any_run_neither_a_rung_nor_a_fold_runs_twice(last: int, tmp_path: Path) -> None:
    """The fifth run is the last fold of the probe, the sixth is lora."""
    machine, runs = Machine({"probe": 0.6, "lora": 0.8}), [0]
    whole = machine.run_one

    def deadly(*given: Any, **named: Any) -> Any:
        found = whole(*given, **named)
        runs[0] += 1
        if runs[0] == last:
            raise Killed
        return found

    machine.run_one = deadly  # type: ignore[method-assign]
    with pytest.raises(Killed):
        ladder(tmp_path, machine).to_the_end()
    _, words = ladder(tmp_path, machine).to_the_end()
    assert words.failure_class is None
    assert machine.trained == ["probe", "lora"]
    assert machine.folds == [(method, index) for method in ("probe", "lora") for index in range(COUNT)]


def test_a_fold_that_fails_ends_the_run_and_one_that_lacks_memory_ends_the_ladder(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8})
    machine.fails_in_fold = {("lora", 2): Reason.StorageUnavailable}
    _, words = ladder(tmp_path, machine).to_the_end()
    assert (words.reason, machine.folds[-1]) == (Reason.StorageUnavailable, ("lora", 1))
    machine.fails_in_fold = {("lora", 2): Reason.InsufficientMemory}
    ended, words = ladder(tmp_path, machine).to_the_end()
    assert words.failure_class is None
    assert ended.status.ladder is not None
    assert (ended.status.ladder.best, ended.status.ladder.stop_reason) == ("probe", "memory")


def test_a_rung_that_breaks_a_guard_is_blocked_without_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "finetune_trainer.ladder.evidence.blocked_by",
        lambda committed, **_: "guards.x is violated" if committed.record.job.uid == "u1-lora" else "",
    )
    machine = Machine({"probe": 0.6, "lora": 0.8})
    ended, _ = ladder(tmp_path, machine).to_the_end()
    told = ended.status.ladder
    assert told is not None
    assert [(rung.decision, rung.rows == 2000) for rung in told.rungs] == [("taken", True), ("blocked", False)]
    assert {method for method, _ in machine.folds} == {"probe"}


def test_folds_that_are_missing_run_in_the_pods_of_their_rung(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8})
    machine.fails_in_fold = {("lora", 2): Reason.StorageUnavailable}
    ladder(tmp_path, machine).to_the_end()
    machine.fails_in_fold = {}
    other = ladder(tmp_path, machine)
    other.elsewhere = lambda method: method == "lora"
    _, words = other.to_the_end()
    assert (words.reason, words.next_rung, machine.folds[-1]) == (Reason.Succeeded, "lora", ("lora", 1))
    _, words = ladder(tmp_path, machine).to_the_end()
    assert (words.failure_class, machine.folds[-2:]) == (None, [("lora", 2), ("lora", 3)])


def test_folds_without_rows_leave_the_decision_to_the_validation_rows(tmp_path: Path) -> None:
    machine = replace(Machine({"probe": 0.6, "lora": 0.8}), empty_folds=True)
    ended, _ = ladder(tmp_path, machine).to_the_end()
    told = ended.status.ladder
    assert told is not None
    assert told.rungs[0].rows is not None
    assert 900 < told.rungs[0].rows < 1100
