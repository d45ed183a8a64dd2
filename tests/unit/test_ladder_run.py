"""`finetune run` with method auto, without training: rungs are made up, the store and the decisions are real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_api.job import FineTuneJob
from finetune_api.ladder import Price
from finetune_api.manifest import ManifestError
from finetune_trainer.agent.home import Home
from finetune_trainer.agent.rungs import Costs, LadderRun
from finetune_trainer.cli.ladder import foresee
from finetune_trainer.data.halves import selects
from finetune_trainer.ladder.derived import of_best, of_rung
from finetune_trainer.report.html import render
from finetune_trainer.store.opening import open_folder
from tests.support.made_rungs import Deadly, Killed, Machine, job
from tests.support.small_report import record


def ladder(made: FineTuneJob, machine: Machine, folder: Path, price: Price | None = None) -> LadderRun:
    home = Home(folder / "home")
    return LadderRun(
        job=made, foresee=lambda: foresee(made, home), run_one=machine.run_one, say=lambda _: None, save=home.save,
        price=price,
    )  # fmt: skip


def test_a_ladder_climbs_while_it_pays_and_publishes_the_best(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8, "full": 0.8})
    ended, words = ladder(job(tmp_path), machine, tmp_path).to_the_end()
    assert words.failure_class is None
    assert machine.trained == ["probe", "lora", "full"]
    told = ended.status.ladder
    assert told is not None
    assert [(rung.name, rung.decision) for rung in told.rungs] == [
        ("probe", "taken"),
        ("lora", "taken"),
        ("full", "noGain"),
    ]
    assert (told.best, told.stop_reason) == ("lora", "noGain")
    (published,) = machine.published
    assert published.uid == "u1-lora"
    assert published.uri.endswith("/out/.finetune/u1/rungs/lora")
    assert "a step up does not pay" in told.story


def test_a_probe_that_suffices_and_a_base_model_that_suffices_are_other_choices(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.8, "lora": 0.8, "full": 0.8})
    ended, _ = ladder(job(tmp_path), machine, tmp_path).to_the_end()
    assert ended.status.ladder is not None
    assert (ended.status.ladder.best, machine.trained) == ("probe", ["probe", "lora"])

    nothing = Machine({"probe": 0.5, "lora": 0.5, "full": 0.5})
    ended, words = ladder(job(tmp_path / "b"), nothing, tmp_path / "b").to_the_end()
    assert words.reason is Reason.NoGain
    assert "no rung is better than the base model" in words.message
    assert nothing.published == []


def test_a_target_ends_the_ladder_and_so_does_the_budget(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.8, "lora": 0.9, "full": 1.0})
    ended, _ = ladder(job(tmp_path, **{"ladder.target": 0.75}), machine, tmp_path).to_the_end()
    assert ended.status.ladder is not None
    assert (ended.status.ladder.stop_reason, machine.trained) == ("targetMet", ["probe"])
    machine = Machine({"probe": 0.8, "lora": 0.9, "full": 1.0})
    made = job(tmp_path / "b", **{"ladder.budget": {"gpuHours": 1e-9}})
    ended, _ = ladder(made, machine, tmp_path / "b").to_the_end()
    assert ended.status.ladder is not None
    assert (ended.status.ladder.stop_reason, machine.trained) == ("budget", ["probe"])
    assert ended.status.ladder.spent > 1e-9


def test_the_base_model_with_examples_in_its_prompt_is_next_to_the_rungs(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8, "full": 0.8}, prompted=0.7)
    ended, _ = ladder(job(tmp_path), machine, tmp_path).to_the_end()
    told = ended.status.ladder
    assert told is not None
    assert machine.shown == [("probe", 4)], "it is measured once"
    assert [rung.name for rung in told.rungs] == ["fewShot", "probe", "lora", "full"]
    shown = told.rungs[0]
    assert (shown.state, shown.decision, shown.cost, shown.score) == ("done", None, None, pytest.approx(0.7, abs=0.02))
    assert shown.gain is not None
    assert shown.low is not None
    assert 0 < shown.low < shown.gain == pytest.approx(0.2, abs=0.03)
    assert "4 examples in the prompt, nothing trained" in shown.reason
    assert (told.best, told.stop_reason) == ("lora", "noGain")
    assert "The base model with 4 examples in its prompt has accuracy 0." in told.story
    assert "Compared with that, lora gains +0.0" in told.story or "Compared with that, lora gains +0.1" in told.story
    html = render(record().model_copy(update={"ladder": told}))
    assert "<td>fewShot</td>" in html


def test_a_prompt_that_reaches_the_target_ends_the_ladder_and_nothing_is_published(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.5, "lora": 0.9, "full": 0.9}, prompted=0.8)
    ended, words = ladder(job(tmp_path, **{"ladder.target": 0.7}), machine, tmp_path).to_the_end()
    assert ended.status.ladder is not None
    assert (ended.status.ladder.stop_reason, machine.trained, machine.published) == ("targetMet", ["probe"], [])
    assert words.reason is Reason.NoGain
    assert words.message.startswith("no training is needed, so nothing was published. The best is the base model.")
    assert "(the base model with examples in its prompt reaches the target)" in words.message


def test_examples_are_shown_in_the_folds_where_these_decide_and_never_where_they_are_off(tmp_path: Path) -> None:
    made = job(tmp_path, **{"ladder": {"rungs": ["probe", "lora"], "folds": 3, "fewShot": 8}})
    machine = Machine({"probe": 0.6, "lora": 0.6}, prompted=0.7)
    ended, _ = ladder(made, machine, tmp_path).to_the_end()
    assert machine.shown == [("probe", 8)] * 3
    assert ended.status.ladder is not None
    assert (ended.status.ladder.rungs[0].name, ended.status.ladder.rungs[0].rows) == ("fewShot", 2000)
    off = Machine({"probe": 0.6, "lora": 0.6}, prompted=0.7)
    made = job(tmp_path / "b", **{"ladder": {"rungs": ["probe", "lora"], "fewShot": 0}})
    ended, _ = ladder(made, off, tmp_path / "b").to_the_end()
    assert off.shown == []
    assert ended.status.ladder is not None
    assert [rung.name for rung in ended.status.ladder.rungs] == ["probe", "lora"]


EUR = Price(per_hour=2.0, currency="EUR")


def test_a_budget_of_money_ends_the_ladder_and_needs_a_price(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.8, "lora": 0.9, "full": 1.0})
    made = job(tmp_path, **{"ladder.budget": {"money": 1e-9}})
    with pytest.raises(FinetuneError, match=r"spec\.ladder\.budget\.money: 1e-09, but no price is known") as raised:
        ladder(made, machine, tmp_path).to_the_end()
    assert (raised.value.reason, machine.trained) == (Reason.InvalidSpec, [])
    ended, _ = ladder(made, machine, tmp_path, EUR).to_the_end()
    told = ended.status.ladder
    assert told is not None
    assert (told.stop_reason, machine.trained) == ("budget", ["probe"])
    assert (told.money_budget, told.currency) == (1e-9, "EUR")
    assert "1e-09 EUR" in told.story


def test_hours_keep_the_price_that_they_had_and_those_in_another_currency_have_the_present_one(tmp_path: Path) -> None:
    folder = open_folder((tmp_path / "rungs").as_uri(), prefix="OUTPUT_")
    costs = Costs.read(folder, EUR)
    costs.hours, costs.money = {"probe": 3.0}, {"probe": 6.0}
    costs.write()
    assert Costs.read(folder, Price(per_hour=5.0, currency="EUR")).money == {"probe": 6.0}
    assert Costs.read(folder, Price(per_hour=5.0, currency="USD")).money == {"probe": 15.0}
    assert Costs.read(folder).money == {}
    again = Costs.read(folder, Price(per_hour=3600.0, currency="EUR"))
    with again.noting("probe", processes=2):
        pass
    hours, money = again.hours["probe"] - 3, again.money["probe"] - 6
    assert hours > 0
    assert money == pytest.approx(hours * 3600, abs=1e-9)


def test_a_rung_that_lacks_memory_ends_the_ladder_and_another_failure_ends_the_run(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8}, fails={"full": Reason.InsufficientMemory})
    ended, words = ladder(job(tmp_path), machine, tmp_path).to_the_end()
    assert words.failure_class is None
    assert ended.status.ladder is not None
    assert (ended.status.ladder.best, ended.status.ladder.stop_reason) == ("lora", "memory")
    broken = Machine({"probe": 0.6}, fails={"lora": Reason.StorageUnavailable})
    _, words = ladder(job(tmp_path / "b"), broken, tmp_path / "b").to_the_end()
    assert words.reason is Reason.StorageUnavailable
    assert broken.published == []


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_killed_after_any_write_no_rung_runs_twice(last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, left = Machine({"probe": 0.6, "lora": 0.8, "full": 0.8}), [last]
    whole = LadderRun._open
    monkeypatch.setattr(LadderRun, "_open", lambda self, uri: Deadly(whole(self, uri), left))
    try:
        ladder(job(tmp_path), machine, tmp_path).to_the_end()
    except Killed:
        pass
    else:
        assert left[0] > 0, "it was never killed"
    left[0] = -1
    ended, words = ladder(job(tmp_path), machine, tmp_path).to_the_end()
    assert words.failure_class is None
    assert machine.trained == ["probe", "lora", "full"]
    assert ended.status.ladder is not None
    assert ended.status.ladder.best == "lora"


def test_a_rung_keeps_gates_and_leaves_the_output_alone(tmp_path: Path) -> None:
    guards = {"minGain": 0.1, "forgetting": {}, "onViolation": "fail"}
    made = job(
        tmp_path, guards=guards, training={"epochs": 2, "seed": 7}, **{"data.general": {"uri": "s3://corp/g.txt"}}
    )
    probe, lora, best = of_rung(made, "probe"), of_rung(made, "lora"), of_best(made, "lora")
    assert (probe.spec.method.type, probe.spec.training.seed, lora.spec.training.epochs) == ("probe", 7, 2)
    assert (lora.spec.guards.min_gain, lora.spec.guards.on_violation) == (None, "warn")
    assert lora.spec.guards.forgetting is not None
    assert best.spec.guards.min_gain == 0.1
    assert best.spec.output.uri == made.spec.output.uri
    assert len({probe.metadata.uid, lora.metadata.uid, best.metadata.uid}) == 3


def test_a_rung_generates_nothing_and_one_that_could_not_be_published_is_refused(tmp_path: Path) -> None:
    made = job(tmp_path, evaluation={"generate": {}, "maxRows": 50}, guards={"collapse": {}})
    lora, best = of_rung(made, "lora"), of_best(made, "lora")
    assert lora.spec.generates is None
    assert lora.spec.evaluation.max_rows == 50
    assert best.spec.generates is not None
    with pytest.raises(ManifestError, match="not supported by method"):
        of_rung(made, "probe")


def test_only_the_run_that_publishes_looks_inside_the_model_and_only_if_its_method_changes_it(tmp_path: Path) -> None:
    made = job(tmp_path, diagnostics={"similarity": "cka"})
    assert of_rung(made, "lora").spec.diagnostics.similarity is None
    assert of_best(made, "lora").spec.diagnostics.similarity == "cka"
    assert of_best(made, "probe").spec.diagnostics.similarity is None


def test_halves_are_halves_and_keep_groups_together() -> None:
    groups = np.arange(10_000, dtype=np.uint64)
    share = selects(groups).mean()
    assert 0.48 < share < 0.52
    assert (selects(groups.repeat(2)).reshape(-1, 2).std(axis=1) == 0).all()


def test_the_report_shows_the_staircase(tmp_path: Path) -> None:
    machine = Machine({"probe": 0.6, "lora": 0.8, "full": 0.8})
    ended, _ = ladder(job(tmp_path), machine, tmp_path).to_the_end()
    page = render(record().model_copy(update={"ladder": ended.status.ladder}))
    assert "<h2>Ladder</h2>" in page
    for word in ("noGain", "a step up does not pay", "accuracy of each rung"):
        assert word in page
    assert "<h2>Ladder</h2>" not in render(record())
