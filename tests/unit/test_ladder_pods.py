"""Rungs with nodes and resources of their own, without training: where each runs, and what is never paid twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.ladder import LadderStatus
from finetune_api.methods import TRAITS
from finetune_api.names import TERMINATION_LIMIT
from finetune_api.plan import RunPlan
from finetune_api.rung_pods import UnavailableRung, describe_pods, first_rung, for_rung, same_pods
from finetune_operator.state.pod_reports import termination_message
from finetune_trainer.agent.climb import climb
from finetune_trainer.agent.rungs import LadderRun
from finetune_trainer.cli.ladder_plan import forecast_text, planned
from finetune_trainer.ladder.derived import of_rung
from finetune_trainer.ladder.rules import Facts, choose
from finetune_trainer.planning.devices import THIS_MACHINE, gpu, nameless
from finetune_trainer.planning.forecast import STARTUP_SECONDS, Forecast, forecast, on_other_devices
from finetune_trainer.planning.table import Planner, Workload
from tests.support.made_rungs import Deadly, Killed, Machine
from tests.support.planning_models import SMOLLM2
from tests.unit.test_ladder_pod import FORECAST, METHODS, costs, job_of, plan_of

LARGE = {"limits": {"memory": "64Gi"}}
OVERRIDES = {
    "rungs": list(METHODS),
    "overrides": [{"rung": "lora", "resources": LARGE}, {"rung": "full", "processesPerNode": 4, "resources": LARGE}],
}
WRITES = 3
"""Of the ladder itself: the cost of each rung. Rungs write for themselves."""

GAINS = {"probe": 0.6, "lora": 0.8, "full": 0.8}


def attempt(plan: RunPlan, machine: Machine, foreseen: Forecast = FORECAST) -> TerminationMessage:
    def run(rung: RunPlan, _: Callable[[], str]) -> TerminationMessage:
        own = for_rung(plan.spec, rung.spec.method.type)
        assert (rung.spec.resources, rung.spec.processes) == (own.resources, own.processes)
        assert same_pods(plan.spec, plan.pods_of, rung.spec.method.type), "it runs in its own pods"
        return machine.run_one(job_of(rung), rung=rung.rung, publishes=rung.publishes)[1]

    words = climb(plan, foreseen=foreseen, run=run, tell=lambda _: None, show=lambda _: None)
    read = termination_message(words.encode())
    assert read is not None, "what the operator makes of it"
    return read


def following(plan: RunPlan, rung: str) -> RunPlan:
    """The plan of the next attempt, as the operator makes it."""
    pods = for_rung(plan.spec, rung)
    return plan.model_copy(update={"pods_of": rung, "attempt": plan.attempt + 1, "processes_per_node": pods.processes})


def attempts(plan: RunPlan, machine: Machine, *, foreseen: dict[str | None, Forecast] | None = None) -> list[str]:
    """The rungs that attempts ended for, as the operator follows them, until one does not."""
    moves: list[str] = []
    while len(moves) < 10:
        words = attempt(plan, machine, (foreseen or {}).get(plan.pods_of, FORECAST))
        if words.next_rung is None:
            assert words.failure_class is None, words
            return moves
        assert (words.failure_class, words.exit_code) == (None, 0)
        moves.append(words.next_rung)
        plan = following(plan, words.next_rung)
    raise AssertionError(f"back and forth without end: {moves}")


def test_each_rung_and_the_run_that_publishes_have_the_pods_of_their_own(tmp_path: Path) -> None:
    machine = Machine(dict(GAINS))
    assert attempts(plan_of(tmp_path, ladder=OVERRIDES), machine) == ["lora", "full", "lora"]
    assert machine.trained == list(METHODS)
    assert [each.uri.rsplit("/", 1)[1] for each in machine.published] == ["lora"]


def test_consecutive_rungs_with_the_same_pods_share_an_attempt(tmp_path: Path) -> None:
    same = {**OVERRIDES, "overrides": [{"rung": name, "resources": LARGE} for name in ("lora", "full")]}
    assert attempts(plan_of(tmp_path, ladder=same), Machine(dict(GAINS))) == ["lora"]


@pytest.mark.parametrize("last", range(1, 9))
def test_an_attempt_that_is_killed_after_any_write_is_continued_in_the_same_pods(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, left, whole = Machine(dict(GAINS)), [last], LadderRun._open
    monkeypatch.setattr(LadderRun, "_open", lambda self, uri: Deadly(whole(self, uri), left))
    plan, moves, killed = plan_of(tmp_path, ladder=OVERRIDES), list[str](), False
    for _ in range(8):
        try:
            words = attempt(plan, machine)
        except Killed:
            before = costs(tmp_path)
            killed = True
            words, left[0] = attempt(plan, machine), -1
            assert {name: costs(tmp_path)[name] for name in before} == before, "a committed rung costs nothing again"
        if words.next_rung is None:
            break
        moves.append(words.next_rung)
        plan = following(plan, words.next_rung)
    assert words.artifact is not None
    assert (machine.trained, moves, killed) == (list(METHODS), ["lora", "full", "lora"], last <= WRITES)


def test_a_rung_costs_the_processes_of_its_own_pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 3600))
    monkeypatch.setattr("finetune_trainer.agent.rungs.time.monotonic", lambda: next(clock))
    attempts(plan_of(tmp_path, ladder=OVERRIDES), Machine(dict(GAINS)))
    found = costs(tmp_path)
    assert found["full"] == 4 * found["lora"] == 4 * found["probe"]


def test_pods_in_which_other_rungs_fit_do_not_send_the_ladder_back_and_forth(tmp_path: Path) -> None:
    """What fits is known in a rung's own pods only; the first forecast holds in all."""

    def fits(*names: str) -> Forecast:
        choice = choose(Facts(rows=20_000, labelled=True, fits=names))
        return Forecast(choice=choice, estimates=dict.fromkeys((each.method for each in choice.rungs), 0.1))

    ladder = {"overrides": [{"rung": "lora", "resources": LARGE}]}
    seen = {None: fits("probe", "lora"), "lora": fits("probe", "qlora")}
    machine = Machine({"probe": 0.6, "lora": 0.8})
    assert attempts(plan_of(tmp_path, ladder=ladder), machine, foreseen=seen) == ["lora"]


def test_a_rung_that_runs_out_of_memory_in_its_own_pods_ends_the_ladder(tmp_path: Path) -> None:
    machine = Machine(dict(GAINS), fails={"full": Reason.InsufficientMemory})
    assert attempts(plan_of(tmp_path, ladder=OVERRIDES), machine) == ["lora", "full", "lora"]
    assert machine.published


def test_the_termination_message_names_the_rung_whatever_else_it_has_to_leave_out() -> None:
    words = TerminationMessage(
        message="m" * 900, next_rung="full", ladder=LadderStatus(rule="x", rule_reason="w" * 1024, story="s" * 1024)
    )
    text = words.encode()
    assert len(text.encode()) <= TERMINATION_LIMIT
    found = termination_message(text)
    assert found is not None
    assert found.next_rung == "full"


def test_what_fits_is_asked_in_the_pods_of_each_rung(tmp_path: Path) -> None:
    """On a device that holds nothing, only rungs are tried that have other pods."""
    ladder = {
        "rungs": ["lora", "full"],
        "overrides": [{"rung": "full", "resources": {"limits": {"nvidia.com/gpu": 2}}}],
    }
    spec = job_of(plan_of(tmp_path, ladder=ladder)).spec
    tiny = Planner(spec=spec, shape=SMOLLM2, device=nameless("cpu", memory=1), workload=Workload(rows=10, tokens=100))
    found = forecast(spec, tiny, tiny.workload, labelled=False, elsewhere=lambda method: on_other_devices(spec, method))
    assert [each.method for each in found.choice.rungs] == ["full"]
    assert [each.rung.method for each in found.choice.skipped] == ["lora"]
    assert found.estimates == {"full": None}


@pytest.mark.parametrize(("device", "ratio"), [("H100", 1.0), (THIS_MACHINE, 2.0)])
def test_estimates_are_for_the_processes_of_each_rung(device: str, ratio: float, tmp_path: Path) -> None:
    """Twice as many GPUs take half the time; processes that share this machine take as long as one, and count twice."""
    work = Workload(rows=100_000, tokens=100_000_000)
    made = replace(gpu("H100"), name=device)

    def hours(processes: int) -> float:
        overrides = [{"rung": "full", "processesPerNode": processes}]
        spec = job_of(plan_of(tmp_path, ladder={"rungs": ["lora", "full"], "overrides": overrides})).spec
        planner = Planner(spec=spec, shape=SMOLLM2, device=made, workload=work)
        found = forecast(spec, planner, work, labelled=False).estimates["full"]
        assert found is not None
        return found - STARTUP_SECONDS * processes / 3600

    assert hours(2) / hours(1) == pytest.approx(ratio, rel=0.3)


def test_the_plan_shows_the_pods_of_each_rung(tmp_path: Path) -> None:
    spec = job_of(plan_of(tmp_path, ladder=OVERRIDES)).spec
    lines = forecast_text(FORECAST, spec).splitlines()
    (full,) = [line for line in lines if line.lstrip().startswith("full")]
    assert "1 pod of 4 processes with memory: 64Gi" in full
    assert lines[-1] == "on a cluster, consecutive rungs with the same pods share an attempt"
    pods: list[Any] = [each["pods"] for each in planned(FORECAST, spec)["rungs"]]
    assert [each["processesPerNode"] for each in pods] == [1, 1, 4]
    assert pods[2]["limits"] == {"memory": "64Gi"}


def test_pods_of_a_rung(tmp_path: Path) -> None:
    spec = job_of(plan_of(tmp_path, ladder=OVERRIDES)).spec
    assert for_rung(spec, "probe") is for_rung(spec, None) is spec
    assert (for_rung(spec, "full").world_size, first_rung(spec)) == (4, "probe")
    assert describe_pods(spec) == "1 pod"
    for method in TRAITS:
        assert (
            of_rung(job_of(plan_of(tmp_path, ladder=OVERRIDES)), method).spec.processes
            == for_rung(spec, method).processes
        )


def test_a_rung_whose_pods_cannot_be_had_stops_the_ladder_and_the_best_is_published(tmp_path: Path) -> None:
    """Its attempt never ran: the operator says so to the one that publishes."""
    machine = Machine(dict(GAINS))
    plan = plan_of(tmp_path, ladder=OVERRIDES)
    for rung in ("lora", "full"):
        assert attempt(plan, machine).next_rung == rung
        plan = following(plan, rung)
    none = UnavailableRung(name="full", reason="StartupDeadline", message="no node fits")
    words = attempt(following(plan, "lora").model_copy(update={"unavailable_rung": none}), machine)
    assert machine.trained == ["probe", "lora"]
    assert [each.uri.rsplit("/", 1)[1] for each in machine.published] == ["lora"]
    assert words.artifact is not None
    assert words.ladder is not None
    assert (words.ladder.best, words.ladder.stop_reason) == ("lora", "unavailable")
    assert "the next rung found no pods (full: StartupDeadline: no node fits)" in words.ladder.story
    assert [rung.state for rung in words.ladder.rungs] == ["done", "done", "skipped"]


def test_a_rung_that_ran_after_all_is_not_left_out(tmp_path: Path) -> None:
    machine, plan = Machine({**GAINS, "full": 0.95}), plan_of(tmp_path, ladder=OVERRIDES)
    assert attempts(plan, machine) == ["lora", "full"]
    none = UnavailableRung(name="full", reason="StartupDeadline")
    again = following(plan, "full").model_copy(update={"unavailable_rung": none})
    found = attempt(again, machine).ladder
    assert found is not None
    assert (found.best, found.stop_reason) == ("full", "topRung")
