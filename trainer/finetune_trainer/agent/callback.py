"""Receives the progress of a script: the endpoint of transformers' KubeflowCallback, served on loopback.

A Hugging Face Trainer registers that callback by itself where KUBEFLOW_TRAINER_SERVER_URL is set, so its script needs
no change. Rank 0 posts, at most every five seconds and at both ends, with a bearer token that it reads from a file:

    {"trainerStatus": {"progressPercentage": 40, "estimatedRemainingSeconds": 90, "lastUpdatedTime": "2026-…",
                       "metrics": [{"name": "current_step", "value": "8"}, {"name": "loss", "value": "1.25"}, …]}}

Other programs can do the same. The progress is written as a TrainerReport, like that of the built-in trainer.
"""

from __future__ import annotations

import hmac
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer
from threading import Thread

from pydantic import Field, ValidationError

from finetune_api.base import ApiModel
from finetune_api.plan import RunPlan
from finetune_api.status import Progress, ResolvedPlan
from finetune_trainer.agent.servers import end
from finetune_trainer.rundir import RunDir, TrainerReport, now

ENV_URL = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_TOKEN_FILE = "KUBEFLOW_TRAINER_SERVER_TOKEN"

TOKEN_FILE = "progress-token"
PATH = "/status"
LIMIT = 64 * 1024
"""Bytes of a request."""

SECONDS = 5.0
"""Time for a client to send its request; requests are handled one at a time."""

METHOD = "command"
"""Value of `status.plan.method` for a script."""

_STEP = ("current_step", "global_step", "step")
_TOTAL = ("total_steps", "max_steps")
_EPOCH = ("current_epoch", "epoch")
_RATE = ("tokens_per_second", "train_tokens_per_second")


class Metric(ApiModel):
    name: str = Field(max_length=256)
    value: float | str


class TrainerStatus(ApiModel):
    progress_percentage: float | None = None
    estimated_remaining_seconds: float | None = None
    metrics: tuple[Metric, ...] = Field((), max_length=256)


class Message(ApiModel):
    trainer_status: TrainerStatus


def first_report(plan: RunPlan) -> TrainerReport:
    """Returns the report of a script that has not reported anything yet."""
    return TrainerReport(
        attempt=plan.attempt, phase="training", plan=ResolvedPlan(method=METHOD, world_size=plan.world_size)
    )


def told(before: TrainerReport, status: TrainerStatus, *, at: float, stopping: bool = False) -> TrainerReport:
    """Updates the report with a message; values that it leaves out are unchanged. `at`: Unix seconds.

    `stopping`: the script was asked to stop. The callback then reports 100 % at the end too, which is ignored."""
    numbers = _numbers(status.metrics)
    old = before.progress
    percent = _whole(status.progress_percentage)
    eta = _whole(status.estimated_remaining_seconds)
    at_its_end = percent is not None and percent >= 100
    if at_its_end and stopping:
        percent, eta = None, None
    progress = Progress(
        step=_whole(_any(numbers, _STEP)) or old.step,
        total_steps=_whole(_any(numbers, _TOTAL)) or old.total_steps,
        percent=old.percent if percent is None else min(percent, 100),
        eta_seconds=old.eta_seconds if eta is None else eta,
        loss=numbers.get("loss", old.loss),
        eval_loss=numbers.get("eval_loss", old.eval_loss),
        tokens_per_second=_known(_any(numbers, _RATE), old.tokens_per_second),
        last_update_time=now(),
    )
    return before.model_copy(
        update={
            "phase": "saving" if at_its_end else "training",
            "progress": progress,
            "epoch": _known(_any(numbers, _EPOCH), before.epoch),
            "learning_rate": numbers.get("learning_rate", before.learning_rate),
            "gradient_norm": numbers.get("grad_norm", before.gradient_norm),
            "last_step_time": at if (_any(numbers, _STEP) or percent) else before.last_step_time,
        }
    )


def _numbers(metrics: tuple[Metric, ...]) -> dict[str, float]:
    """Returns the metrics that are finite numbers: the callback sends every value as a string."""
    found = {}
    for metric in metrics:
        try:
            value = float(metric.value)
        except ValueError:
            continue
        if math.isfinite(value):
            found[metric.name] = value
    return found


def _any(numbers: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    return next((numbers[name] for name in names if name in numbers), None)


def _known(new: float | None, old: float | None) -> float | None:
    return old if new is None else new


def _whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else max(0, int(value))


@contextmanager
def listening(
    plan: RunPlan, run_dir: RunDir, *, stopping: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, str]]:
    """Receives messages while the block runs; yields the environment variables with the address."""
    token = secrets.token_urlsafe(32)
    token_file = run_dir.path / TOKEN_FILE
    _write_private(token_file, token)
    report = first_report(plan)
    run_dir.write_report(report)

    class Post(_Post):
        def authorised(self) -> bool:
            given = self.headers.get("Authorization", "")
            return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

        def take(self, status: TrainerStatus) -> None:
            nonlocal report
            report = told(report, status, at=time.time(), stopping=stopping())
            run_dir.write_report(report)

    with TCPServer(("127.0.0.1", 0), Post) as server:  # one at a time: there is one that reports
        Thread(target=server.serve_forever, name="callback", daemon=True).start()
        try:
            port = server.server_address[1]
            yield {ENV_URL: f"http://127.0.0.1:{port}{PATH}", ENV_TOKEN_FILE: str(token_file)}
        finally:
            end(server)
            token_file.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


class _Post(BaseHTTPRequestHandler):
    timeout = SECONDS
    server_version = "finetune-agent"
    sys_version = ""

    def authorised(self) -> bool:
        raise NotImplementedError

    def take(self, status: TrainerStatus) -> None:
        raise NotImplementedError

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        # read whatever the answer is: who is still sending when we hang up may not hear it
        body = self.rfile.read(min(int(length), 4 * LIMIT)) if length.isdigit() else None
        self.send_response(self._answer(body))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, body: bytes | None) -> int:
        if self.path != PATH:
            return 404
        if not self.authorised():
            return 401
        if body is None:
            return 411
        if len(body) > LIMIT:
            return 413
        try:
            self.take(Message.model_validate_json(body).trainer_status)
        except ValidationError:
            return 400
        return 200

    def log_message(self, format: str, *args: object) -> None:
        """Does not log requests, since there is one every few seconds."""
