"""What a script tells, in the wire format of transformers' KubeflowCallback, and what becomes of it."""

from __future__ import annotations

import json
import stat
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent.callback import (
    ENV_TOKEN_FILE,
    ENV_URL,
    LIMIT,
    Message,
    TrainerStatus,
    first_report,
    listening,
    told,
)
from finetune_trainer.rundir import RunDir

PLAN = RunPlan(
    job=JobIdentity(namespace="team", name="mine", uid="u"), attempt=2, nodes=2, spec=FineTuneJobSpec(command=("a.py",))
)


def status(percent: float | None = None, eta: float | None = None, **metrics: object) -> TrainerStatus:
    """As transformers 5 sends it: every value as text."""
    content: dict[str, Any] = {
        "lastUpdatedTime": "2026-01-02T03:04:05+00:00",
        "metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()],
    }
    content |= {} if percent is None else {"progressPercentage": percent}
    content |= {} if eta is None else {"estimatedRemainingSeconds": eta}
    return Message.model_validate_json(json.dumps({"trainerStatus": content})).trainer_status


BEGIN = status(0, total_steps=8)
STEP = status(
    25, 90, loss=2.5, grad_norm=0.5, learning_rate=1e-3, epoch=0.5, current_step=2, total_steps=8, current_epoch=0.5
)
EVALUATED = status(50, 60, loss=2.5, eval_loss=2.25, current_step=4, total_steps=8)
END = status(100, 0, loss=1.5, eval_loss=2.0, train_loss=1.9, train_runtime=9.0)  # fmt: skip


def test_the_messages_of_a_run_become_its_reports() -> None:
    report = first_report(PLAN)
    assert (report.attempt, report.phase, report.plan and report.plan.world_size) == (2, "training", 2)
    assert report.last_step_time is None

    report = told(report, BEGIN, at=5.0)
    assert (report.progress.step, report.progress.total_steps, report.progress.percent) == (0, 8, 0)
    assert report.last_step_time is None, "the first step may take long: it has not been told yet"

    report = told(report, STEP, at=10.0)
    assert (report.progress.step, report.progress.percent, report.progress.eta_seconds) == (2, 25, 90)
    assert (report.progress.loss, report.progress.eval_loss) == (2.5, None)
    assert (report.learning_rate, report.gradient_norm, report.epoch) == (1e-3, 0.5, 0.5)
    assert report.last_step_time == 10.0

    report = told(report, EVALUATED, at=20.0)
    assert (report.progress.step, report.progress.eval_loss, report.learning_rate) == (4, 2.25, 1e-3)

    report = told(report, END, at=30.0)
    assert (report.phase, report.progress.percent, report.progress.eta_seconds) == ("saving", 100, 0)
    assert (report.progress.step, report.progress.loss) == (4, 1.5), "the last message names no step"


def test_a_script_that_was_stopped_is_not_done_though_its_callback_says_so() -> None:
    report = told(told(first_report(PLAN), STEP, at=1.0), END, at=2.0, stopping=True)
    assert (report.phase, report.progress.percent, report.progress.eta_seconds) == ("saving", 25, 90)


@pytest.mark.parametrize(
    "message",
    [status(10, loss="nan"), status(10, loss="inf"), status(10, loss="high"), status(10, accuracy=0.5), status(10)],
)
def test_what_is_no_number_is_no_news(message: TrainerStatus) -> None:
    report = told(told(first_report(PLAN), STEP, at=1.0), message, at=2.0)
    assert (report.progress.loss, report.progress.percent) == (2.5, 10)


@pytest.mark.parametrize(("percent", "expected"), [(-5, 0), (250, 100), (33.4, 33)])
def test_a_percentage_stays_one(percent: float, expected: int) -> None:
    assert told(first_report(PLAN), status(percent), at=1.0).progress.percent == expected


def post(url: str, body: bytes, **headers: str) -> int:
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_only_who_has_the_token_is_heard(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    good = json.dumps({"trainerStatus": {"progressPercentage": 40}}).encode()
    with listening(PLAN, run_dir) as environ:
        url, token_file = environ[ENV_URL], Path(environ[ENV_TOKEN_FILE])
        right = {"Authorization": f"Bearer {token_file.read_text()}"}
        assert url.startswith("http://127.0.0.1:")
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        assert post(url, good) == 401
        assert post(url, good, Authorization="Bearer guessed") == 401
        assert post(url.replace("/status", "/other"), good, **right) == 404
        assert post(url, b"{", **right) == 400
        assert post(url, b'{"trainerStatus": {"progressPercentage": "much"}}', **right) == 400
        assert post(url, b" " * (LIMIT + 1), **right) == 413
        before = run_dir.report()
        assert before is not None
        assert before.progress.percent is None, "nothing of that was taken"

        assert post(url, good, **right) == 200
        report = run_dir.report()
        assert report is not None
        assert report.progress.percent == 40
        with urllib.request.urlopen(urllib.request.Request(url, data=good, headers=right)) as response:
            assert response.status == 200
    assert not token_file.exists()


def test_the_next_run_has_another_token(tmp_path: Path) -> None:
    tokens = set()
    for _ in range(2):
        with listening(PLAN, RunDir(tmp_path)) as environ:
            tokens.add(Path(environ[ENV_TOKEN_FILE]).read_text())
    assert len(tokens) == 2


def test_the_installed_transformers_speaks_this_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own callback, called as its Trainer calls it."""
    integrations = pytest.importorskip("transformers.integrations.integration_utils")
    from transformers import TrainerControl, TrainerState

    run_dir = RunDir(tmp_path)
    with listening(PLAN, run_dir) as environ:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        callback = integrations.KubeflowCallback()
        state = TrainerState(max_steps=8, is_world_process_zero=True)
        callback.on_train_begin(None, state, TrainerControl())
        callback.on_log(None, state, TrainerControl(), logs={"loss": 2.5, "learning_rate": 0.001})
        state.global_step, state.epoch, callback._last_update_time = 2, 0.25, 0.0
        callback.on_step_end(None, state, TrainerControl())
        report = run_dir.report()
        callback.on_train_end(None, state, TrainerControl())
    assert report is not None
    assert (report.progress.step, report.progress.total_steps, report.progress.percent) == (2, 8, 25)
    assert (report.progress.loss, report.learning_rate, report.epoch) == (2.5, 0.001, 0.25)
    last = run_dir.report()
    assert last is not None
    assert (last.phase, last.progress.percent) == ("saving", 100)
