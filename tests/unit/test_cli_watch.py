"""`finetune watch`: what it shows of a job is a table; where it looks, and when it ends."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.client import Event
from finetune_api.failures import ExitCode
from finetune_api.job import FineTuneJob
from finetune_api.status import Phase, Progress
from finetune_trainer.agent.home import Home
from finetune_trainer.cli import watch as command
from finetune_trainer.cli.main import main
from finetune_trainer.cli.watch import LINE_SECONDS, Lines, Screen
from finetune_trainer.cli.watch_view import (
    LossPoint,
    Snapshot,
    new_lines,
    points_in,
    screen,
    sparkline,
    with_progress,
)
from finetune_trainer.rundir import RunDir, TrainerReport
from tests.support.documents import ROOT
from tests.support.fake_cluster import FakeCluster, raw_job
from tests.support.printed_json import conforms

HALF = Progress(step=60, total_steps=120, loss=1.25, eval_loss=1.5, tokens_per_second=1234.5, eta_seconds=190)
CURVE = (LossPoint(step=6, loss=2.5), LossPoint(step=60, loss=1.25))
WARNING = Event(time="2026-01-01T10:02:11Z", type="Warning", reason="PodFailed", message="node 1 is lost", count=2)


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([4, 3, 2, 1], 4, "█▆▃▁"),
        ([1.0], 8, "▁"),
        ([2, 2, 2], 3, "▁▁▁"),
        ([], 8, ""),
        ([1, 3, 5, 7], 2, "▁█"),
        ([2, float("nan"), 1], 3, "█!▁"),
        ([float("inf")], 3, "!"),
    ],
)
def test_a_sparkline(values: list[float], width: int, drawn: str) -> None:
    assert sparkline(values, width) == drawn


def test_the_curve_is_read_from_the_log_and_continued_by_progress() -> None:
    log = 'loading\nstep 6/120 loss 2.5000 lr 1e-4\nstep 9 validation loss 1.0\n{"message": "step 60/120 loss nan"}'
    points = points_in(log)
    assert [(point.step, str(point.loss)) for point in points] == [(6, "2.5"), (60, "nan")]

    assert with_progress(CURVE, HALF) == CURVE, "the step is known"
    assert with_progress(CURVE, Progress(step=61)) == CURVE, "no loss is known"
    again = with_progress(CURVE, Progress(step=30, loss=1.75))
    assert [point.step for point in again] == [6, 30], "after a restart a step is made again"


SCREENS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("nothing is known yet", {"phase": Phase.Pending}, ["team/tickets  Pending"]),
    (
        "it trains",
        {"attempt": 2, "nodes": 2, "restarts": 1, "progress": HALF, "curve": CURVE},
        [
            "team/tickets  Running  attempt 2, 2 nodes, 1 restart",
            "████████████░░░░░░░░░░░░  step 60/120 (50 %)  3m10s left",
            "loss 1.2500  eval 1.5000  1,234 tok/s",
            "█▁  loss 2.5 at step 6 to 1.25 at step 60",
        ],
    ),
    (
        "on this machine",
        {"namespace": "", "activity": "evaluating", "attempt": 1, "nodes": 1},
        ["tickets  Running (evaluating)  attempt 1, 1 node"],
    ),
    (
        "with GPUs",
        {"attempt": 1, "nodes": 2, "gpus": 16, "gpu_hours": 12.25, "wasted_gpu_hours": 1.5},
        ["team/tickets  Running  attempt 1, 2 nodes, 16 GPUs", "12.2 GPU hours (1.5 wasted)"],
    ),
    (
        "it failed",
        {"phase": Phase.Failed, "message": "DataEmpty: no rows", "events": (WARNING,), "progress": HALF},
        [
            "team/tickets  Failed",
            "████████████░░░░░░░░░░░░  step 60/120 (50 %)",
            "loss 1.2500  eval 1.5000  1,234 tok/s",
            "DataEmpty: no rows",
            "",
            "10:02:11 ! PodFailed: node 1 is lost (2 times)",
        ],
    ),
    (
        "it is done",
        {"phase": Phase.Succeeded, "artifact": "s3://corp/m"},
        ["team/tickets  Succeeded", "artifact  s3://corp/m"],
    ),
    (
        "text of a cluster moves no cursor",
        {"message": "\x1b[2Jgone\nand more", "phase": Phase.Queued},
        ["team/tickets  Queued", "gone and more"],
    ),
]


def snapshot(**changes: Any) -> Snapshot:
    return Snapshot(**{"name": "tickets", "namespace": "team", "phase": Phase.Running, **changes})


@pytest.mark.parametrize(("given", "lines"), [case[1:] for case in SCREENS], ids=[case[0] for case in SCREENS])
def test_a_screen(given: dict[str, Any], lines: list[str]) -> None:
    assert screen(snapshot(**given), width=80) == lines
    assert all(len(line) <= 20 for line in screen(snapshot(**given), width=20))


def test_a_log_is_shown_what_is_new() -> None:
    first = snapshot(attempt=1, events=(WARNING,))
    later = snapshot(attempt=1, events=(WARNING,), progress=HALF)

    assert list(new_lines(None, first, due=True)) == [
        "tickets: event  10:02:11 ! PodFailed: node 1 is lost (2 times)",
        "tickets: Running",
    ]
    assert list(new_lines(first, later, due=False)) == []
    assert list(new_lines(first, later, due=True)) == [
        "tickets: Running  step 60/120 (50 %)  loss 1.2500  eval 1.5000  1,234 tok/s  3m10s left"
    ]
    assert list(new_lines(later, later, due=True)) == []
    ended = snapshot(phase=Phase.Succeeded, attempt=1, artifact="s3://corp/m")
    assert list(new_lines(later, ended, due=False)) == ["tickets: Succeeded", "tickets: artifact  s3://corp/m"]


def test_plain_lines_are_no_more_frequent_than_said() -> None:
    clock, out = [0.0], io.StringIO()
    lines = Lines(out, clock=lambda: clock[0])
    for step, at in ((1, 0.0), (2, 1.0), (3, LINE_SECONDS)):
        clock[0] = at
        lines.show(snapshot(progress=Progress(step=step, total_steps=9)))
    assert [line.split("  ")[1] for line in out.getvalue().splitlines()] == ["step 1/9 (11 %)", "step 3/9 (33 %)"]


def test_a_screen_replaces_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = io.StringIO()
    view = Screen(out)
    view.show(snapshot(progress=HALF))
    view.show(snapshot(phase=Phase.Succeeded))
    assert out.getvalue().endswith("1,234 tok/s\n\x1b[3F\x1b[Jteam/tickets  Succeeded\n")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    found = FakeCluster().install(monkeypatch)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/kubectl")
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(
        command.OnCluster, "_log", lambda _, attempt: f"step 1/120 loss {attempt + 2}.5\nstep 2/120 loss 1.5\n"
    )
    return found


def running(**status: Any) -> dict[str, Any]:
    return {"phase": "Running", "attempt": 1, "nodes": 2, **status}


def test_a_job_of_a_cluster_is_followed_to_its_failure(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.jobs["tickets"] = raw_job(phase="Pending")
    cluster.events = [
        {"reason": "GangCreated", "message": "Attempt 1 with 2 pods", "lastTimestamp": "2026-01-01T00:00:02Z"}
    ]
    failure = {"class": "Data", "reason": "DataEmpty", "message": "no rows.", "hint": "Give some.", "attempt": 1}
    progress = {"step": 3, "totalSteps": 120, "loss": 1.25}
    # a look for the name, one for the first snapshot, and then the operator writes
    cluster.later = [{"phase": "Pending"}, running(progress=progress), {"phase": "Failed", "lastFailure": failure}]
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw_job()))

    assert main(["watch", str(file), "--home", str(tmp_path)]) == ExitCode.DATA
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "tickets: event  00:00:02   GangCreated: Attempt 1 with 2 pods",
        "tickets: Pending",
        "tickets: Running  step 3/120 (2 %)  loss 1.2500",
        "tickets: Failed",
        "tickets: DataEmpty: no rows. Give some.",
    ]
    assert all("team" in call or call[0] == "get" for call in cluster.calls)


def test_as_json_with_the_curve_from_before_the_first_look(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eight = {"resources": {"limits": {"nvidia.com/gpu": "8"}}}
    cluster.jobs["tickets"] = raw_job(
        phase="Running", attempt=4, nodes=2, progress={"step": 3, "totalSteps": 9, "loss": 1.25},
        usage={"gpuHours": 3.5, "wastedGpuHours": 0.5}, spec=eight,
    )  # fmt: skip

    assert main(["watch", "tickets", "-n", "team", "--once", "-o", "json"]) == ExitCode.OK
    (printed,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (printed["gpus"], printed["gpuHours"], printed["wastedGpuHours"]) == (16, 3.5, 0.5)
    assert [point["loss"] for point in printed["curve"]] == [6.5, 1.5, 1.25]
    conforms("watch", printed)
    page = (ROOT / "docs" / "cli.md").read_text().partition("`watch` prints")[2]
    assert [field for field in printed if f"| `{field}` |" not in page] == []


def test_a_cluster_that_does_not_answer_for_a_while_does_not_end_it(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.jobs["tickets"] = raw_job(phase="Running", attempt=1)
    cluster.later = [running(), {"phase": "Succeeded"}]
    shown = []

    def show(now: Snapshot) -> None:
        shown.append((now.phase, now.message))
        if len(shown) == 1:
            cluster.refusals["get"] = ["The connection to the server was refused"]

    view = type("View", (), {"show": staticmethod(show)})()
    where = command.Where(home=Path("none"), namespace="team")
    assert command.watch("tickets", where, view, every=1) == ExitCode.OK
    assert shown == [
        ("Running", ""), ("Running", "The connection to the server was refused; retrying"), ("Succeeded", ""),
    ]  # fmt: skip


def test_a_job_that_is_deleted_ends_it(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.refusals["get"] = ['Error from server (NotFound): finetunejobs "tickets" not found']
    assert main(["watch", "tickets", "-n", "team"]) == ExitCode.NO_INPUT


@pytest.mark.parametrize(
    ("phase", "status"), [("Succeeded", ExitCode.OK), ("Suspended", ExitCode.INTERRUPTED)], ids=str
)
def test_a_run_on_this_machine(
    phase: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)

    def saved(phase: str, **more: Any) -> None:
        home.save(FineTuneJob.model_validate_json(json.dumps(raw_job("tiny", phase, attempt=1, **more))))

    saved("Running")
    log = home.log("tiny", node=0, attempt=1)
    log.parent.mkdir(parents=True)
    log.write_text("step 1/4 loss 2.5 lr 1\nstep 2/4 loss 1.5 lr 1\nsaved checkpoint at step 2\n")
    report = TrainerReport(
        attempt=1, phase="training", progress=Progress(step=3, total_steps=4, loss=1.25, eta_seconds=1)
    )
    RunDir(home.node("tiny", 0)).write_report(report)
    monkeypatch.setattr("time.sleep", lambda _: saved(phase))

    assert main(["watch", "tiny", "--home", str(tmp_path)]) == status
    assert capsys.readouterr().out.splitlines() == [
        "tiny: event  saved checkpoint at step 2",
        "tiny: Running (training)  step 3/4 (75 %)  loss 1.2500  1s left",
        f"tiny: {phase}",
    ]
    assert main(["watch", "tiny", "--once", "-o", "json", "--home", str(tmp_path)]) == ExitCode.OK
    assert [point["step"] for point in json.loads(capsys.readouterr().out)["curve"]] == [1, 2]


def test_a_file_that_is_not_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "missing.yaml")]) == ExitCode.CONFIG
    assert "cannot be read as a manifest" in " ".join(capsys.readouterr().err.split())
