"""Trackers whose server is away, wrong or slow: what that costs a run, and what the log may not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_trainer.trackers import group
from finetune_trainer.trackers.background import MOST_RETRY_SECONDS, RETRY_SECONDS, Background
from finetune_trainer.trackers.base import Ending, Kind
from finetune_trainer.trackers.mlflow import MLflow
from finetune_trainer.trackers.points import Outcome
from finetune_trainer.trackers.wandb import WeightsAndBiases
from tests.unit.test_trackers import Recorded, points, run_in

ANSWER = json.dumps(
    {
        "experiment": {"experiment_id": "1", "name": "finetune"},
        "runs": [],
        "run": {"info": {"run_id": "r1", "run_name": "tickets", "experiment_id": "1", "status": "RUNNING"}},
    }
).encode()
"""What a client reads of each of MLflow's answers."""


@pytest.fixture
def mlflow_server() -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """(port, (path, body) of each request)."""
    asked: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0))))
            self.send_response(200)
            self.send_header("Content-Length", str(len(ANSWER)))
            self.end_headers()
            self.wfile.write(ANSWER)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


def test_the_password_of_mlflows_address_is_not_printed(
    tmp_path: Path,
    mlflow_server: tuple[int, list[tuple[str, bytes]]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    port, asked = mlflow_server
    tracker = MLflow(run_in(tmp_path), {"MLFLOW_TRACKING_URI": f"http://me:hunter2hunter2@127.0.0.1:{port}"})
    where = tracker.start()
    tracker.log(points(1))
    tracker.leave(Ending.interrupted)
    assert json.loads(asked[-1][1])["status"] == "KILLED"
    printed = capfd.readouterr()
    assert "hunter2" not in where + printed.out + printed.err


def test_points_that_mlflow_gets_twice_have_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Sequence[Any]] = []

    class Client:
        def log_batch(self, _: str, *, metrics: Sequence[Any]) -> None:
            sent.append(metrics)
            if len(sent) == 1:
                raise TimeoutError("the server has them, and its answer was lost")

    tracker = MLflow(run_in(tmp_path), {})
    monkeypatch.setattr(tracker, "_client", Client())
    times = iter((1.0, 2.0, 3.0))
    monkeypatch.setattr("finetune_trainer.trackers.mlflow.time.time", lambda: next(times))
    with pytest.raises(TimeoutError):
        tracker.log(points(1))
    tracker.log(points(1, 2))
    tracker.log(points(3))
    assert [[(each.step, each.timestamp) for each in batch] for batch in sent] == [
        [(1, 1000)], [(1, 1000), (2, 2000)], [(3, 3000)],
    ]  # fmt: skip


def test_a_failed_start_of_weights_and_biases_leaves_no_thread_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its error reports, each left two: a server that is wrong for days took the memory of the pod."""
    import wandb

    seen: list[str | None] = []

    def init(**_: Any) -> None:
        seen.append(os.environ.get("WANDB_ERROR_REPORTING"))
        raise ConnectionError

    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    monkeypatch.setattr(wandb, "init", init)
    tracker = WeightsAndBiases(run_in(tmp_path), {})
    with pytest.raises(ConnectionError):
        tracker.start()
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    with pytest.raises(ConnectionError):
        tracker.start()
    assert seen == ["false", "true"]


class _WandbHandler(BaseHTTPRequestHandler):
    """As much of the API of Weights & Biases as `wandb sync` needs to upload a run without files."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        self.server.asked.append((self.path, body))  # type: ignore[attr-defined]
        answer: dict[str, Any] = {}
        if "UpsertBucket" in body:
            project = {"id": "p", "name": "finetune", "entity": {"id": "e", "name": "team"}}
            bucket = {"id": "b", "name": "uid-1", "displayName": "tickets", "config": "{}", "historyLineCount": 0}
            answer = {"data": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}}
        elif "CreateRunFiles" in body:
            answer = {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}}
        elif self.path == "/graphql":
            answer = {"data": {}}
        told = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        pass


def test_wandb_sync_uploads_what_was_written_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own command, to a stand-in for its server."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = WeightsAndBiases(run_in(tmp_path), {"WANDB_MODE": "offline"})
    tracker.start()
    tracker.log(points(1, 2))
    tracker.finish(Outcome(2, {}, {"artifact": "s3://b/o"}))
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*-uid-1")

    with ThreadingHTTPServer(("127.0.0.1", 0), _WandbHandler) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environ = {**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a" * 40}
        environ |= {"HOME": str(tmp_path)} | {"WANDB_MODE": "online"}
        command = [str(Path(sys.executable).with_name("wandb")), "sync", str(folder)]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        server.shutdown()
        thread.join()
        asked = server.asked  # type: ignore[attr-defined]

    assert done.returncode == 0, done.stdout + done.stderr
    runs = [json.loads(body)["variables"] for path, body in asked if path == "/graphql" and "UpsertBucket" in body]
    assert {(run["name"], run["project"]) for run in runs} == {("uid-1", "finetune")}
    history = [
        json.loads(line)
        for path, body in asked if path.endswith("/uid-1/file_stream")
        for line in json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", ())
    ]  # fmt: skip
    assert [line["step"] for line in history if "train/loss" in line] == [1, 2]


def test_a_tracker_that_keeps_failing_is_tried_less_and_less_often_until_it_works_again() -> None:
    paused: list[float] = []
    again = threading.Event()

    class Noted(Background):
        def _pause(self, seconds: float) -> None:
            paused.append(seconds)
            if len(paused) == 9:
                again.set()

    tracker = Recorded(failing=8)
    background = Noted("Demo", tracker, lambda _: None, patience=600)
    background.log(points(1))
    while not tracker.steps:
        again.wait(0.01)
    tracker.failing = 1
    background.log(points(2))
    assert again.wait(60)
    background.leave(Ending.failed)
    background.wait()
    assert paused == [*(RETRY_SECONDS * 2**times for times in range(6)), *[MOST_RETRY_SECONDS] * 2, RETRY_SECONDS]
    assert tracker.steps == [1, 2]


@pytest.mark.parametrize("seconds", ["inf", "1e300", "nan", "-1", "soon"])
def test_no_number_of_seconds_fails_the_end_of_a_run(tmp_path: Path, seconds: str) -> None:
    trackers = group.opened(run_in(tmp_path), {names.ENV_TRACKER_SECONDS: seconds}, lambda _: None)
    trackers.finish(Outcome(1))


def test_trackers_that_hang_are_waited_for_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each is told of the end before the first is waited for."""
    told: list[str] = []

    class Waits(Recorded):
        def leave(self, ending: Ending) -> None:
            told.append(str(ending))
            if len(told) < 2:
                both.wait(60)
            both.set()

    both = threading.Event()
    kinds = [Kind(title, lambda _: "always", lambda *_: Waits()) for title in ("One", "Two")]
    monkeypatch.setattr(group, "KINDS", tuple(kinds))
    said: list[str] = []
    trackers = group.opened(run_in(tmp_path), {names.ENV_TRACKER_SECONDS: "180"}, said.append)
    trackers.leave(Ending.failed)
    assert told == ["failed", "failed"]
    assert both.is_set()
    assert not [line for line in said if "no answer" in line]
