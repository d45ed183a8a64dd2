"""The small parts of the agent: waiting, stopping, hanging, counting, answering."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from finetune_api import names
from finetune_api import series as metric
from finetune_api.data import Data, TrainSource
from finetune_api.failures import Reason
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec, ModelSource, Output
from finetune_api.status import Progress
from finetune_trainer.agent import children
from finetune_trainer.agent.local import culprit
from finetune_trainer.agent.serve import serving
from finetune_trainer.agent.stopping import Stop
from finetune_trainer.agent.verdict import say
from finetune_trainer.agent.waiting import is_loopback, wait_for_master
from finetune_trainer.agent.watch import Limits, _hung, _overdue
from finetune_trainer.planning import machine
from finetune_trainer.planning.quantity import quantity
from finetune_trainer.rundir import Heartbeat, RunDir, TrainerReport
from tests.support.tiny_model import tiny_corpus, tiny_model

SPEC = FineTuneJobSpec(
    model=ModelSource(uri="file:///m"), data=Data(train=(TrainSource(uri="file:///d"),)), output=Output(uri="file:///o")
)
PLAN = RunPlan(job=JobIdentity(namespace="team", name="cardiology", uid="u"), attempt=3, spec=SPEC)


def closed_port() -> socket.socket:
    """A port that nobody else can have, and that refuses until the socket listens."""
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    return made


def test_waits_for_a_port_that_opens_later() -> None:
    tries = 0

    def stopped() -> bool:
        nonlocal tries
        tries += 1
        if tries == 3:
            listener.listen()
        return False

    with closed_port() as listener:
        port = listener.getsockname()[1]
        assert wait_for_master("127.0.0.1", port, limit_seconds=120, stopped=stopped, poll=0.01)
    assert tries >= 3


def test_a_name_that_does_not_resolve_is_waited_for_and_not_an_error() -> None:
    assert not wait_for_master("no-such-pod.invalid", 1, limit_seconds=0.2, stopped=lambda: False, poll=0.05)


def test_waiting_ends_when_somebody_stops_it() -> None:
    asked: list[bool] = []
    with closed_port() as listener:
        port = listener.getsockname()[1]
        assert not wait_for_master("127.0.0.1", port, limit_seconds=600, stopped=lambda: not asked.append(True))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.1.2.3", False), ("job-0.job", False)],
)
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_the_first_signal_asks_and_an_interrupt_after_it_ends_at_once() -> None:
    stop = Stop()
    assert not stop.first_time_seen()
    stop.receive(signal.SIGTERM)
    assert (stop.reason, stop.at_once, stop.first_time_seen(), stop.first_time_seen()) == (
        "SIGTERM",
        False,
        True,
        False,
    )
    stop.receive(signal.SIGTERM)
    assert not stop.at_once
    stop.receive(signal.SIGINT)
    assert stop.at_once


@pytest.mark.parametrize(("grace", "left"), [(120, 110), (30, 27), (5, 4)])
def test_ranks_get_the_grace_period_minus_a_margin(grace: int, left: int) -> None:
    assert Limits(grace_seconds=grace, stall_seconds=600).checkpoint_seconds == left


def test_a_stop_before_any_rank_runs_ends_at_once(tmp_path: Path) -> None:
    stop = Stop()
    stop.receive(signal.SIGTERM)
    words = _overdue(RunDir(tmp_path), stop, Limits(grace_seconds=100, stall_seconds=600))
    assert words is not None
    assert words.reason is Reason.Interrupted


def test_ranks_that_run_get_their_time(tmp_path: Path) -> None:
    run_dir, stop = RunDir(tmp_path), Stop()
    run_dir.beat(0, "training", 3)
    assert _overdue(run_dir, stop, Limits(grace_seconds=100, stall_seconds=600)) is None
    stop.receive(signal.SIGTERM)
    assert _overdue(run_dir, stop, Limits(grace_seconds=100, stall_seconds=600)) is None
    stop.since = time.monotonic() - 95
    assert _overdue(run_dir, stop, Limits(grace_seconds=100, stall_seconds=600)) is not None


def beat(phase: str, at: float, step: int = 7) -> Heartbeat:
    return Heartbeat(phase=phase, step=step, time=at)


@pytest.mark.parametrize(
    ("beats", "rank"),
    [
        pytest.param({0: beat("training", 990.0), 1: beat("training", 950.0)}, None, id="all have stepped lately"),
        pytest.param({0: beat("training", 890.0), 1: beat("training", 880.0)}, 1, id="the first to fall silent"),
        pytest.param({0: beat("evaluating", 1.0)}, None, id="evaluating takes as long as it takes"),
        pytest.param({}, None, id="nobody runs yet"),
    ],
)
def test_hang(beats: dict[int, Heartbeat], rank: int | None) -> None:
    words = _hung(beats, Limits(grace_seconds=10, stall_seconds=100), 1000.0)
    assert (words.rank if words else None) == rank
    if words is not None:
        assert words.reason is Reason.NoProgress
        assert "after step 7" in words.message


def test_orphans_are_reaped_and_our_own_children_keep_their_status() -> None:
    program = """
import os, subprocess, sys, time
from finetune_trainer.agent import children
children.adopt_orphans()
own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
middle = subprocess.run(["sh", "-c", "sleep 0.2 & echo $!"], stdout=subprocess.PIPE, text=True)
orphan = int(middle.stdout)
for _ in range(2400):
    children.reap([own])
    if own.returncode is not None and not os.path.exists(f"/proc/{orphan}"):
        break
    time.sleep(0.05)
print(own.returncode, os.path.exists(f"/proc/{orphan}"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "False"]


def test_end_all_reaches_grandchildren_in_other_sessions() -> None:
    program = """
import subprocess, sys
from finetune_trainer.agent import children
children.adopt_orphans()
child = subprocess.Popen(["sh", "-c", "trap '' TERM; setsid sleep 300 & echo started; wait"], stdout=subprocess.PIPE)
child.stdout.readline()
assert len(children.descendants()) >= 1
children.end_all()
child.wait()
children.reap([])
print(len(children.descendants()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


def cgroup(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_the_tightest_memory_limit_counts(tmp_path: Path) -> None:
    assert machine.memory_limit(cgroups=cgroup(tmp_path, memory__max="1048576\n")) == 1048576
    unlimited = cgroup(tmp_path / "no", memory__max="max\n")
    assert machine.memory_limit(cgroups=unlimited) > 1048576


def test_oom_kills_are_counted_in_both_versions_of_cgroups(tmp_path: Path) -> None:
    v2 = cgroup(tmp_path / "2", memory__events="low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n")
    v1 = cgroup(tmp_path / "1" / "memory", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 5\n").parent
    assert machine.oom_kills(cgroups=v2) == 2
    assert machine.oom_kills(cgroups=v1) == 5
    assert machine.oom_kills(cgroups=tmp_path / "none") == 0


def test_cpu_quota_rounds_up(tmp_path: Path) -> None:
    assert machine.cpu_count(cgroups=cgroup(tmp_path, cpu__max="50000 100000\n")) == 1
    assert machine.cpu_count(cgroups=cgroup(tmp_path / "free", cpu__max="max 100000\n")) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "expected"), [("64Mi", 67108864), ("2G", 2_000_000_000), (1024, 1024), ("1500m", 1), ("0.5Gi", 536870912)]
)
def test_quantities(text: int | str, expected: int) -> None:
    assert quantity(text) == expected


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def test_before_the_trainer_reports_the_agents_phase_is_the_progress(tmp_path: Path) -> None:
    with serving("127.0.0.1", 0, plan=PLAN, run_dir=RunDir(tmp_path), phase=lambda: "waiting") as port:
        assert json.loads(get(port, "/progress")) == {
            "attempt": 3,
            "phase": "waiting",
            "progress": {"step": 0},
            "uid": PLAN.job.uid,
        }
        assert get(port, "/healthz") == "ok\n"


def test_metrics_are_what_the_run_directory_knows(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.beat(0, "training", 12)
    progress = Progress(step=12, total_steps=40, loss=1.5)
    run_dir.write_report(TrainerReport(attempt=3, phase="training", progress=progress, learning_rate=1e-4))
    with serving("127.0.0.1", 0, plan=PLAN, run_dir=run_dir, phase=lambda: "loading") as port:
        samples = dict(line.rsplit(" ", 1) for line in get(port, "/metrics").splitlines() if not line.startswith("#"))
        told = json.loads(get(port, "/progress"))
    keys = '{attempt="3",name="cardiology",namespace="team"}'
    assert float(samples[metric.TRAIN_STEP.name + keys]) == 12
    assert float(samples[metric.TRAIN_LOSS.name + keys]) == 1.5
    assert float(samples[metric.AGENT_UP.name + keys]) == 1
    assert metric.TRAIN_EVAL_LOSS.name + keys not in samples
    phases = {k: float(v) for k, v in samples.items() if k.startswith(metric.AGENT_PHASE.name)}
    assert sum(phases.values()) == 1
    assert told["phase"] == "training"


@pytest.mark.parametrize("path", ["/", "/etc/passwd", "/../../etc/passwd", "/metrics/"])
def test_nothing_else_is_served(tmp_path: Path, path: str) -> None:
    with (
        serving("127.0.0.1", 0, plan=PLAN, run_dir=RunDir(tmp_path), phase=lambda: "loading") as port,
        pytest.raises(urllib.error.HTTPError, match="404"),
    ):
        get(port, path)


def test_a_gang_ends_for_the_earliest_reason_that_is_not_about_another_node() -> None:
    peer = say(Reason.PeerLost, "peer", time="2026-01-01T00:00:01Z")
    stopped = say(Reason.Interrupted, "stop", time="2026-01-01T00:00:02Z")
    late = say(Reason.OutOfMemory, "late", time="2026-01-01T00:00:09Z")
    early = say(Reason.PodFailed, "early", time="2026-01-01T00:00:03Z")
    assert culprit([peer, late, early, stopped]) is early
    assert culprit([peer, stopped]) is stopped
    assert culprit([peer]) is peer


def test_the_agent_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys; import finetune_trainer.agent.main, finetune_trainer.agent.serve, finetune_trainer.cli.main\n"
    )
    program += "print([m for m in ('torch', 'numpy', 'transformers', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_preflight_of_a_job_that_asks_for_nothing_special_imports_no_torch(tmp_path: Path) -> None:
    """Which would take seconds of every start, and memory next to ranks of other jobs."""
    model, corpus = tiny_model(tmp_path / "model"), tiny_corpus(tmp_path / "corpus", rows=16)
    spec = FineTuneJobSpec(
        model=ModelSource(uri=model.as_uri()),
        data=Data(train=(TrainSource(uri=(corpus / "train.jsonl").as_uri()),), sequence_length=128),
        output=Output(uri=(tmp_path / "output").as_uri()),
    )
    (tmp_path / "plan.json").write_text(PLAN.model_copy(update={"spec": spec}).model_dump_json(by_alias=True))
    program = "import sys; from finetune_trainer.agent import preflight; code = preflight.main(sys.argv[1:])\n"
    program += "print(code, [m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    words = ["--plan", tmp_path / "plan.json", "--words", tmp_path / "words"]
    environment = os.environ | {names.ENV_CACHE: str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1:] == ["0 []"], done.stdout + done.stderr


def test_descendants_of_a_process_without_children() -> None:
    assert isinstance(children.descendants(), list)
