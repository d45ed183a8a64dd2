"""What people read: failures, tables, progress; and lines of a run that nobody watches on a terminal."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from finetune_api.manifest import Problem
from finetune_api.measurements import Evaluation
from finetune_api.progress_text import progress_line, span
from finetune_api.status import (
    Artifact,
    AvoidedNode,
    Condition,
    FailureClass,
    FineTuneJobStatus,
    LastFailure,
    Phase,
    Progress,
    ResolvedPlan,
    Restarts,
)
from finetune_trainer.cli.live import LINE_SECONDS, Lines, Screen
from finetune_trainer.cli.text import (
    WIDTH,
    evaluation_table,
    failure_block,
    problems_text,
    runbook,
    size,
    status_text,
)
from finetune_trainer.report.compare import compare
from finetune_trainer.rundir import TrainerReport
from tests.support.small_report import change

EVALUATION = Evaluation(
    data=(
        change("test", 0.5, 0.75, "better", kind="test"),
        change("general", 1.0, 1.05, "worse", kind="general", metric="bitsPerByte"),
        change("tweets", 1.0, 0.5, "inconclusive", metric="loss", half=None, rows=12),
    )
)


def test_before_and_after_with_interval_and_verdict_on_one_line_each() -> None:
    lines = [" ".join(line.split()) for line in evaluation_table(compare(EVALUATION.data)).splitlines()[2:]]
    assert lines == [
        "test 400 accuracy 50.0 % 75.0 % +25.0 points [+21.0, +29.0] better",
        "slice tweets 12 loss 1.000 0.500 −0.500 too few rows (12 of 20) inconclusive",
        "general text 400 bits per byte 1.000 1.050 +0.050 [+0.010, +0.090] worse",
    ]


def test_nothing_measured_is_no_table() -> None:
    assert evaluation_table(()) == ""


ROOT = Path(__file__).resolve().parents[2]

FAILURE = LastFailure(
    failure_class=FailureClass.Infrastructure,
    reason="PodFailed",
    message="rank 1 was killed (SIGKILL): often the kernel's OOM killer",
    hint="Look at the node's kernel log. " * 6,
    attempt=2,
    rank=1,
    node="1",
)


def test_a_failure_says_class_reason_place_message_hint_and_log() -> None:
    text = failure_block(FAILURE, logs="runs/x/attempt-2.log")
    words = ("PodFailed (class Infrastructure)", "rank 1, node 1, attempt 2", "SIGKILL", "kernel log", "attempt-2.log")
    for word in words:
        assert word in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_failure_names_the_page_that_explains_it() -> None:
    text = failure_block(FAILURE)
    assert re.search(r"docs +docs/runbooks\.md#infrastructure", text)
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), flags=re.MULTILINE)
    assert {runbook(name) for name in FailureClass} <= {f"docs/runbooks.md#{heading.lower()}" for heading in headings}


def test_problems_name_their_fields() -> None:
    text = problems_text("job.yaml", (Problem("spec.node", "unknown field; did you mean nodes?"), Problem("", "odd")))
    assert text.splitlines() == ["job.yaml: 2 problems", "  spec.node: unknown field; did you mean nodes?", "  odd"]


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress(), "training"),
        (
            Progress(step=20, total_steps=80, loss=1.5, eval_loss=1.25, tokens_per_second=1234.5, eta_seconds=190),
            "training  step 20/80 (25 %)  loss 1.5000  eval 1.2500  1,234 tok/s  3m10s left",
        ),
    ],
)
def test_progress(progress: Progress, expected: str) -> None:
    assert progress_line("training", progress) == expected


def test_numbers_for_people() -> None:
    assert [span(s) for s in (5, 65, 3785)] == ["5s", "1m05s", "1h03m"]
    assert [size(s) for s in (5, 1536, 5 << 20)] == ["5 B", "1.5 KiB", "5.0 MiB"]


def test_status_shows_all_that_is_known() -> None:
    status = FineTuneJobStatus(
        phase=Phase.Failed,
        attempt=2,
        restarts=Restarts(counted=1),
        progress=Progress(step=5, total_steps=10),
        plan=ResolvedPlan(method="lora", world_size=2, learning_rate=2e-4, trainable_parameters=1000),
        evaluation=EVALUATION,
        artifact=Artifact(uri="s3://b/out", digest="sha", size_bytes=2048, kind="adapter"),
        last_failure=FAILURE,
        conditions=(
            Condition(
                type="Failed",
                status="True",
                reason="RestartsExhausted",
                last_transition_time="2026-01-01T10:00:00.123456Z",
            ),
        ),
    )
    text = status_text("tiny", status, logs="the.log")
    for word in (
        "Failed", "2 (1 counted, 0 free restarts)", "step 5/10 (50 %)", "lora, 2 process(es), rate 0.0002", "1,000",
        "RestartsExhausted", "s3://b/out (adapter, 2.0 KiB, sha)", "s3://b/out/report.html", "+25.0 points", "the.log",
    ):  # fmt: skip
        assert word in text


def test_a_job_that_nobody_has_seen_yet_is_pending() -> None:
    assert "Pending" in status_text("new", FineTuneJobStatus())


@dataclass
class Clock:
    seconds: float = 100.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Watched:
    """Lines into a buffer, by a clock of ours."""

    out: io.StringIO = field(default_factory=io.StringIO)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.lines = Lines("tiny", self.out, self.clock)

    def show(self, **known: object) -> list[str]:
        """The lines that this report gives."""
        before = len(self.out.getvalue())
        self.lines.show(TrainerReport(attempt=1, **known), ranks="2 of 2")  # type: ignore[arg-type]
        return self.out.getvalue()[before:].splitlines()


def test_each_event_is_one_line_and_silence_is_none() -> None:
    watched = Watched()
    assert watched.show(phase="training", progress=Progress(step=1, total_steps=9)) == [
        "tiny: training  step 1/9 (11 %)  (2 of 2 ranks)"
    ]
    assert watched.show(phase="training", progress=Progress(step=2, total_steps=9)) == []
    watched.clock.seconds += LINE_SECONDS
    assert len(watched.show(phase="training", progress=Progress(step=3, total_steps=9))) == 1
    assert watched.show(phase="training", progress=Progress(step=3), last_checkpoint_step=3) == [
        "tiny: saved checkpoint at step 3"
    ]
    assert len(watched.show(phase="training", progress=Progress(step=3, eval_loss=1.0), last_checkpoint_step=3)) == 1


def test_the_screen_shows_bar_losses_speed_and_ranks() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    screen = Screen("tiny", console)
    progress = Progress(step=5, total_steps=10, loss=1.5, eval_loss=1.25, tokens_per_second=900, eta_seconds=65)
    report = TrainerReport(attempt=1, phase="training", progress=progress, learning_rate=1e-4, last_checkpoint_step=4)
    with console.capture() as drawn:
        console.print(screen._drawn(report, "2 of 2"))
    for word in ("tiny", "training", "5/10 (50 %)", "1m05s left", "1.5000", "1.2500", "900", "step 4", "2 of 2"):
        assert word in drawn.get()


def told(phase: Phase, type: str, reason: str, message: str, failure: LastFailure | None = None) -> str:
    condition = Condition(
        type=type, status="False", reason=reason, message=message, last_transition_time="2026-01-02T03:04:05Z"
    )
    return status_text("x", FineTuneJobStatus(phase=phase, conditions=(condition,), last_failure=failure))


def test_what_a_job_waits_for_is_told() -> None:
    assert "why    the Job x-1 waits in the queue a" in told(
        Phase.Queued, "Running", "Queued", "the Job x-1 waits in the queue a"
    )
    used_up = f"Attempt 4 failed: PodFailed: {FAILURE.message}; all 3 restarts are used up ({FAILURE.hint})"
    assert "why    all 3 restarts are used up\n" in told(Phase.Failed, "Failed", "RestartsExhausted", used_up, FAILURE)


def test_what_the_last_failure_tells_is_not_told_twice() -> None:
    assert "why" not in told(
        Phase.Failed, "Failed", "PodFailed", f"Attempt 2 failed: PodFailed: {FAILURE.message} ({FAILURE.hint})", FAILURE
    )
    assert "why" not in told(Phase.Running, "Running", "GangRunning", "all 2 pods run")


def test_each_budget_is_told_and_each_node_that_is_avoided() -> None:
    status = FineTuneJobStatus(
        phase=Phase.Running,
        attempt=5,
        nodes=3,
        restarts=Restarts(counted=1, free=0, out_of_memory=2, resized=1),
        avoided_nodes=(
            AvoidedNode(
                name="gpu-7", failures=2, last_failure_time="2026-01-02T03:04:05Z", until="2026-01-02T04:04:05Z"
            ),
            AvoidedNode(name="gpu-8", failures=1, last_failure_time="2026-01-02T03:04:05Z"),
        ),
    )
    text = status_text("x", status)
    assert "5 (1 counted, 0 free, 2 after running out of memory, 1 resized restarts)" in " ".join(text.split())
    assert "nodes    3" in text
    assert "gpu-7 (until 2026-01-02T04:04:05Z)" in text
    assert "gpu-8" not in text
