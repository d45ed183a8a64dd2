"""Trackers: what they get, TensorBoard's files, MLflow and Weights & Biases offline, and that none fails a run."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_api.measurements import Evaluation, GuardResult
from finetune_api.plan import JobIdentity
from finetune_trainer.report.record import AttemptRecord, CurvePoint, ValidationPoint
from finetune_trainer.store.opening import open_folder
from finetune_trainer.trackers import events, group, tensorboard
from finetune_trainer.trackers.background import Background
from finetune_trainer.trackers.base import Ending, Kind, TrackedRun
from finetune_trainer.trackers.mlflow import MLflow
from finetune_trainer.trackers.points import Outcome, Point, clock, of_curves, outcome_of
from finetune_trainer.trackers.tensorboard import TensorBoard
from finetune_trainer.trackers.wandb import WANDB
from finetune_trainer.train.state import CURVE_POINTS
from tests.support import event_files
from tests.support.small_report import record, scores

ROOT = Path(__file__).parents[2]
GUARD = GuardResult(name="forgetting", bound=0.05, value=0.012, verdict="passed")


def run_in(folder: Path, *, attempt: int = 1, uid: str = "uid-1") -> TrackedRun:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    return TrackedRun(
        job=JobIdentity(namespace="team", name="tickets", uid=uid), name="tickets", attempt=attempt,
        manifest="kind: FineTuneJob\n", settings={"method": "lora", "learningRate": 2e-4},
        output=f"file://{folder}/out", folder=folder / "run",
    )  # fmt: skip


def points(*steps: int) -> list[Point]:
    return [Point(step, {"train/loss": 1 / (step + 1)}) for step in steps]


class Recorded:
    """A tracker that writes down its calls; `failing` of them fail first."""

    def __init__(self, *, failing: int = 0, until: threading.Event | None = None) -> None:
        self.steps: list[int] = []
        self.ends: list[Outcome | Ending] = []
        self.starts = 0
        self.failing, self.until = failing, until

    def start(self) -> str:
        self.starts += 1
        if self.until:
            self.until.wait(60)
        return "here"

    def log(self, points: Sequence[Point]) -> None:
        if self.failing:
            self.failing -= 1
            raise ConnectionError("no route to host")
        self.steps += [point.step for point in points]

    def finish(self, outcome: Outcome) -> None:
        self.ends.append(outcome)

    def leave(self, ending: Ending) -> None:
        self.ends.append(ending)


# --- what they are given


def test_curves_are_points_in_the_order_of_their_steps_under_names_that_all_trackers_share() -> None:
    curve = (
        CurvePoint(step=2, loss=0.5, learning_rate=1e-4, regularization={"ewc": 0.25}),
        CurvePoint(step=4, loss=0.4),
    )
    found = list(of_curves(curve, (ValidationPoint(step=3, scores=scores(0.7, accuracy=0.9)),), after=1))
    assert found == [
        Point(2, {"train/loss": 0.5, "train/learning_rate": 1e-4, "train/ewc": 0.25}),
        Point(3, {"validation/loss": 0.7, "validation/accuracy": 0.9}),
        Point(4, {"train/loss": 0.4}),
    ]


def test_an_outcome_has_evaluation_guards_and_the_artifact_but_no_number_that_is_not_finite() -> None:
    evaluation = Evaluation(data=record().evaluation.data, guards=(GUARD,))
    found = outcome_of(record(evaluation=evaluation), artifact="s3://b/out", digest="abc")
    assert found.step == 40
    assert found.values["evaluation/test/accuracy/tuned"] == 0.883
    assert found.values["evaluation/slice music/accuracy/difference"] == pytest.approx(-0.11)
    assert found.values["guards/forgetting/bound"] == 0.05
    assert found.words == {
        "artifact": "s3://b/out", "digest": "abc", "guards/forgetting": "passed", "stopReason": "all steps done",
    }  # fmt: skip
    assert list(of_curves((CurvePoint(step=1, loss=float("nan")),), ())) == []


def test_the_time_of_a_step_is_interpolated_within_its_attempt_and_never_goes_back() -> None:
    start = datetime.fromisoformat("2026-11-24T20:00:00Z").timestamp()
    attempts = (
        AttemptRecord(attempt=1, last_step=20, start_time="2026-11-24T20:00:00Z", end_time="2026-11-24T20:00:20Z"),
        AttemptRecord(attempt=2, first_step=10, last_step=30, start_time="2026-11-24T20:01:00Z"),
    )
    at = clock(attempts, until=start + 80)
    assert [at(step) - start for step in (0, 5, 10, 20, 30, 31)] == [0, 30, 60, 70, 80, 80]
    times = [at(step) for step in range(31)]
    assert times == sorted(times)
    assert clock((), until=7.0)(3) == 7.0


# --- TensorBoard


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, appendix B.4, for this row and the next two
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_is_that_of_the_rfc(data: bytes, crc: int) -> None:
    assert events.crc32c(data) == crc


def test_the_event_file_of_a_record_has_its_manifest_its_curves_and_its_evaluation() -> None:
    name, content = events.of_record(record(), manifest="kind: FineTuneJob\n")
    found = event_files.read(content)
    assert name == "events.out.tfevents.1795552621.cardiology"
    assert found[0].version == "brain.Event:2"
    assert found[1].texts == {"manifest": "```yaml\nkind: FineTuneJob\n```"}
    curves = event_files.scalars(content)
    assert curves["train/loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 41)]
    assert [step for step, _ in curves["validation/accuracy"]] == [0, 20, 40]
    assert curves["evaluation/test/accuracy/tuned"] == [(40, pytest.approx(0.883))]
    assert events.of_record(record(), manifest="kind: FineTuneJob\n") == (name, content)


def test_numbers_beyond_32_bits_and_long_texts_are_written_whole() -> None:
    content = events.scalars(10**12, 1.5, {"a": 1e300, "b": -1e300}) + events.text("t", "ü" * 5000, 2.0)
    first, second = event_files.read(content)
    assert (first.step, first.time, first.scalars) == (10**12, 1.5, {"a": float("inf"), "b": float("-inf")})
    assert second.texts == {"t": "ü" * 5000}


def test_event_files_grow_locally_are_uploaded_each_minute_and_removed_with_the_artifact(
    tmp_path: Path,
) -> None:
    now = [1000.0]
    store = open_folder(f"file://{tmp_path}/out", prefix="")
    tracker = TensorBoard(run_in(tmp_path), store, clock=lambda: now[0])
    (tmp_path / "run" / "tensorboard").mkdir()
    (tmp_path / "run" / "tensorboard" / "events.out.tfevents.1.tickets").write_bytes(b"of an earlier attempt")
    tracker.start()
    tracker.log(points(1))
    assert store.list() == []
    now[0] += tensorboard.UPLOAD_SECONDS
    tracker.log(points(2, 3))
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    uploaded = ".finetune/uid-1/tensorboard/1/events.out.tfevents.0000001000.tickets"
    assert store.read(uploaded) == file.read_bytes()
    assert [step for step, _ in event_files.scalars(file.read_bytes())["train/loss"]] == [1, 2, 3]
    tracker.finish(Outcome(3, {"guards/forgetting/value": 0.5}))
    assert event_files.scalars(file.read_bytes())["guards/forgetting/value"] == [(3, 0.5)]
    assert store.list(".finetune/uid-1") == []


def test_the_curves_of_a_failed_attempt_stay_in_the_store(tmp_path: Path) -> None:
    store = open_folder(f"file://{tmp_path}/out", prefix="")
    tracker = TensorBoard(run_in(tmp_path), store)
    tracker.start()
    tracker.log(points(1))
    tracker.leave(Ending.failed)
    (kept,) = store.list(tensorboard.place("uid-1"))
    assert event_files.scalars(store.read(kept.path))["train/loss"] == [(1, 0.5)]


def test_of_a_job_that_is_interrupted_again_and_again_the_last_attempts_are_kept(tmp_path: Path) -> None:
    store = open_folder(f"file://{tmp_path}/out", prefix="")
    place = tensorboard.place("uid-1")
    store.put(f"{place}/notes.txt", b"of somebody else")
    for attempt in range(1, tensorboard.MOST_ATTEMPTS + 3):
        tracker = TensorBoard(run_in(tmp_path, attempt=attempt), store)
        tracker.start()
        tracker.leave(Ending.interrupted)
    kept = {entry.path.removeprefix(f"{place}/").partition("/")[0] for entry in store.list(place)}
    assert kept == {"notes.txt", *map(str, range(3, tensorboard.MOST_ATTEMPTS + 3))}


def test_the_event_file_of_the_longest_run_is_less_than_a_megabyte() -> None:
    """A run logs less than two times CURVE_POINTS steps, here with three terms of regularization."""
    steps = (
        CurvePoint(
            step=n,
            loss=1.0,
            learning_rate=1e-4,
            gradient_norm=1.0,
            tokens_per_second=1e4,
            regularization={"ewc": 1.0, "klToBase": 1.0, "l2sp": 1.0},
        )
        for n in range(2 * CURVE_POINTS)
    )
    content = [events.scalars(point.step, 1.7e9, point.values) for point in of_curves(tuple(steps), ())]
    assert sum(map(len, content)) < 1e6


# --- none fails a run


def test_a_tracker_that_fails_is_tried_again_with_all_points_in_order_and_named_once() -> None:
    said: list[str] = []
    gate = threading.Event()
    tracker = Recorded(failing=3, until=gate)
    background = Background("Demo", tracker, said.append, retry_seconds=0.0, patience=600)
    for step in range(1, 6):
        background.log(points(step))
    gate.set()
    _until(lambda: tracker.steps == [1, 2, 3, 4, 5])
    background.log(points(6))
    background.leave(Ending.interrupted)
    background.wait()
    assert (tracker.steps, tracker.ends, tracker.starts) == ([1, 2, 3, 4, 5, 6], [Ending.interrupted], 1)
    opened, failed = said
    assert opened == "Demo: here"
    assert failed == "Demo: ConnectionError: no route to host; it is tried again, and the run continues"


def test_a_tracker_that_hangs_is_left_behind() -> None:
    said: list[str] = []
    gate = threading.Event()
    background = Background("Demo", Recorded(until=gate), said.append, patience=0.01)
    background.log(points(1))
    background.finish(Outcome(1))
    background.wait()
    assert said == ["Demo: no answer within 0.01 s; the end of this run is not logged there"]
    gate.set()


def _until(ready: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(6000):
        if ready():
            return
        waited.wait(0.01)
    raise AssertionError("not within a minute")


# --- which ones


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    """Trackers of all kinds, by title, that only write down."""
    made: dict[str, Recorded] = {}

    def recording(kind: Kind) -> Kind:
        def open(*_: Any) -> Recorded:
            made[kind.title] = Recorded()
            return made[kind.title]

        return Kind(kind.title, kind.asked_by, open, kind.module, kind.package)

    monkeypatch.setattr(group, "KINDS", tuple(map(recording, group.KINDS)))
    return made


@pytest.mark.parametrize(
    ("environ", "titles"),
    [
        ({}, ["TensorBoard"]),
        ({"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, ["TensorBoard", "MLflow"]),
        ({"WANDB_API_KEY": "abcdef"}, ["TensorBoard", "Weights & Biases"]),
        ({"WANDB_MODE": "offline"}, ["TensorBoard", "Weights & Biases"]),
        ({"WANDB_API_KEY": "abcdef", "WANDB_MODE": "disabled"}, ["TensorBoard"]),
        ({"WANDB_API_KEY": "abcdef", "WANDB_DISABLED": "true"}, ["TensorBoard"]),
    ],
)
def test_the_environment_decides_which_trackers_there_are(
    opened: dict[str, Recorded], tmp_path: Path, environ: dict[str, str], titles: list[str]
) -> None:
    trackers = group.opened(run_in(tmp_path), {**environ, names.ENV_TRACKER_SECONDS: "600"}, lambda _: None)
    assert list(opened) == titles
    curve = [CurvePoint(step=step, loss=1.0) for step in (1, 2)]
    trackers.progress(curve, ())
    trackers.progress(curve, (ValidationPoint(step=2, scores=scores(0.5)),))
    trackers.progress([*curve, CurvePoint(step=3, loss=1.0)], (ValidationPoint(step=2, scores=scores(0.5)),))
    trackers.leave(Ending.failed)
    trackers.finish(Outcome(3))
    for tracker in opened.values():
        assert (tracker.steps, tracker.ends) == ([1, 2, 2, 3], [Ending.failed])


def test_what_is_asked_for_and_not_installed_is_one_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    monkeypatch.setattr(group, "find_spec", lambda _: None)
    group.opened(run_in(tmp_path), {"WANDB_MODE": "offline"}, said.append).leave(Ending.failed)
    assert "Weights & Biases: WANDB_MODE is set, but the package wandb is not installed; nothing is logged" in said


def test_no_secret_of_the_environment_comes_out_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Leaks(Recorded):
        def start(self) -> str:
            raise ValueError("401 for key 0123456789abcdef at http://me:pass@wandb:8080")

    said: list[str] = []
    monkeypatch.setattr(group, "KINDS", (Kind("Leaky", lambda _: "always", lambda *_: Leaks()),))
    trackers = group.opened(
        run_in(tmp_path), {"WANDB_API_KEY": "0123456789abcdef", names.ENV_TRACKER_SECONDS: "600"}, said.append
    )
    trackers.leave(Ending.failed)
    assert len(said) == 1
    assert "0123456789abcdef" not in said[0]
    assert ":pass@" not in said[0]


@pytest.mark.parametrize("kind", group.KINDS, ids=lambda kind: kind.title)
def test_each_tracker_has_a_row_of_the_docs_and_its_package_in_the_extra(kind: Kind) -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["trackers"]
    assert f"\n| {kind.title} |" in (ROOT / "docs" / "trackers.md").read_text()
    assert not kind.package or any(requirement.startswith(f"{kind.package}>=") for requirement in extra)


# --- MLflow and Weights & Biases, as they are installed


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file://{tmp_path}/mlruns"


def test_mlflow_has_one_run_for_all_attempts_with_manifest_settings_guards_and_artifact(
    tmp_path: Path, mlflow_store: str
) -> None:
    from mlflow.tracking import MlflowClient

    environ = {"MLFLOW_TRACKING_URI": mlflow_store, "MLFLOW_EXPERIMENT_NAME": "support"}
    first = MLflow(run_in(tmp_path), environ)
    first.start()
    first.log(points(1, 2, 3))
    first.leave(Ending.interrupted)
    other = MLflow(run_in(tmp_path, uid="uid-2"), environ)
    other.start()
    second = MLflow(run_in(tmp_path, attempt=2), environ)
    second.start()
    second.log(points(1, 2, 3, 4, 5))  # from a checkpoint, and two steps more
    client = MlflowClient(tracking_uri=mlflow_store)
    experiment = client.get_experiment_by_name("support")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], "tags.`finetune.uid` = 'uid-1'")
    assert found.info.status == "RUNNING"
    second.finish(
        Outcome(5, {"guards/forgetting/value": 0.012}, {"guards/forgetting": "passed", "artifact": "s3://b/o"})
    )
    found = client.get_run(found.info.run_id)
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3, 4, 5]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "tickets")
    assert found.data.params == {"method": "lora", "learningRate": "0.0002"}
    assert found.data.metrics["guards/forgetting/value"] == 0.012
    tags = found.data.tags
    assert tags["mlflow.note.content"] == "```yaml\nkind: FineTuneJob\n```"
    assert (tags["finetune.artifact"], tags["finetune.guards.forgetting"]) == ("s3://b/o", "passed")
    assert tags["finetune.attempt"] == "2"


def test_a_run_that_a_guard_kept_back_has_failed_in_mlflow(tmp_path: Path, mlflow_store: str) -> None:
    from mlflow.tracking import MlflowClient

    tracker = MLflow(run_in(tmp_path), {"MLFLOW_TRACKING_URI": mlflow_store})
    where = tracker.start()
    tracker.finish(Outcome(5, {}, {"refused": "forgetting is violated"}))
    found = MlflowClient(tracking_uri=mlflow_store).get_run(where.rpartition(" ")[2])
    assert (found.info.status, found.data.tags["finetune.refused"]) == ("FAILED", "forgetting is violated")


def test_weights_and_biases_writes_offline_what_can_be_synchronised_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = WANDB.open(run_in(tmp_path), {"WANDB_MODE": "offline"})
    where = tracker.start()
    tracker.log(points(1, 2))
    tracker.finish(Outcome(2, {"guards/forgetting/value": 0.012}, {"artifact": "s3://b/o"}))
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*-uid-1")
    file = folder / "run-uid-1.wandb"
    words = (b"kind: FineTuneJob", b"train/loss", b"s3://b/o", b"guards/forgetting/value", b"learningRate")
    _until(lambda: all(word in file.read_bytes() for word in words))  # a process of its own writes them
    assert str(folder) in where
