"""Log lines as JSON: one object a line with the same keys, from the operator and from the agent."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from finetune_api import logs as lines
from finetune_api.logs import ENV_FORMAT, json_line
from finetune_api.plan import JobIdentity, RunPlan
from finetune_operator import main as operator
from finetune_operator.logs import JsonFormatter, about
from finetune_trainer.agent.main import Agent, AgentOptions
from finetune_trainer.agent.stopping import Stop
from tests.support.operator_objects import spec

AT = 1767323045.678
"""2026-01-02T03:04:05.678Z"""


def logged(emit: Any) -> dict[str, Any]:
    """What one line of the operator's log says."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("finetune_operator.reconciler")
    logger.addHandler(handler)
    emit(logger)
    (line,) = stream.getvalue().splitlines()
    said: dict[str, Any] = json.loads(line)
    return said


def test_a_line_has_time_level_job_attempt_and_message() -> None:
    line = json_line("it\nruns", level="INFO", at=AT, namespace="ml", job="a", attempt=2)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "info",
        "namespace": "ml",
        "job": "a",
        "attempt": 2,
        "message": "it\nruns",
    }


def test_the_operators_line_belongs_to_the_job_that_is_looked_at() -> None:
    with about(("ml", "a"), 2):
        said = logged(lambda log: log.warning("%s/%s: %s", "ml", "a", "Pending → Running"))
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "warning",
        "namespace": "ml",
        "job": "a",
        "attempt": 2,
        "message": "Pending → Running",
        "logger": "finetune_operator.reconciler",
    }
    assert {"namespace", "job", "attempt"}.isdisjoint(logged(lambda log: log.warning("lost leadership")))


def test_a_traceback_stays_in_its_line() -> None:
    def fail(log: logging.Logger) -> None:
        try:
            raise OverflowError("too big")
        except OverflowError:
            log.exception("it failed")

    said = logged(fail)
    assert said["exception"].endswith("OverflowError: too big")


@pytest.mark.parametrize("argv", [["--log-format", "json"], []], ids=["argument", "environment"])
def test_the_operator_is_asked_for_json(argv: list[str]) -> None:
    environ = {} if argv else {"FINETUNE_OPERATOR_LOG_FORMAT": "json"}
    assert operator.parse(["--all-namespaces", *argv], environ).log_format == "json"


def test_an_unknown_format_of_the_environment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        operator.parse(["--all-namespaces"], {"FINETUNE_OPERATOR_LOG_FORMAT": "xml"})
    assert "--log-format xml: one of text, json" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_agent_writes_what_it_is_asked_for(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = RunPlan(job=JobIdentity(namespace="ml", name="a", uid="u"), attempt=3, spec=spec())
    options = AgentOptions(plan=tmp_path, run_dir=tmp_path, listen=None, environ={ENV_FORMAT: format})
    Agent(options=options, plan=plan, stop=Stop()).log("node 0 of 1", level="error")
    (line,) = capsys.readouterr().err.splitlines()
    if format == "text":
        assert line == "a: node 0 of 1"
        return
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {"level": "error", "namespace": "ml", "job": "a", "attempt": 3, "message": "node 0 of 1"}


def test_a_format_that_nobody_knows_is_text() -> None:
    assert lines.chosen_format({ENV_FORMAT: "xml"}) == "text"
