"""`spec.command` for real: an unmodified Hugging Face script, and small ones that fail, stop and hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from finetune_api import names
from finetune_api.failures import ExitCode, Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import Deadlines, FineTuneJobSpec, Output
from finetune_api.status import FailureClass, Phase
from finetune_trainer.agent.home import Home
from finetune_trainer.agent.local import free_port
from finetune_trainer.rundir import RunDir
from tests.support.tiny_model import tiny_corpus, tiny_model

pytestmark = pytest.mark.timeout(600)

EXAMPLE = Path(__file__).parents[2] / "examples" / "train.py"


def run(folder: Path, spec: dict[str, Any]) -> tuple[int, str, FineTuneJob]:
    """`finetune run job.yaml` in the folder: its exit status, what it printed, and the job as it was left."""
    job = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "mine"}, "spec": spec}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "finetune_trainer.cli.main", "run", "job.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    told = Home(folder / ".finetune").load("mine")
    assert told is not None, done.stderr
    return done.returncode, done.stdout + done.stderr, told


def test_an_unmodified_hugging_face_script_reports_its_progress_and_completes(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    tiny_corpus(tmp_path / "corpus", rows=64)
    (tmp_path / "train.py").write_bytes(EXAMPLE.read_bytes())
    arguments = ["--model", "model", "--text", "corpus/train.jsonl", "--output", "out"]
    code, said, job = run(tmp_path, {"command": ["python", "train.py", *arguments]})

    assert code == ExitCode.OK, said
    assert job.status.phase is Phase.Succeeded
    assert [(c.type, c.status) for c in job.status.conditions] == [("Complete", "True")]
    progress = job.status.progress
    assert progress is not None
    assert (progress.percent, progress.total_steps, progress.eta_seconds) == (100, 8, 0), "64 rows, 8 at once"
    assert progress.loss is not None
    assert 0 < progress.loss < 10
    assert job.status.plan is not None
    assert (job.status.plan.method, job.status.plan.world_size) == ("command", 1)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "mine: saving  step" in said


def test_a_script_that_raises_is_restarted_and_told_with_what_it_raised(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("""
import os
print("attempt", os.environ["FINETUNE_ATTEMPT"], "of", os.environ["FINETUNE_JOB_NAME"], os.environ["GREETING"])
def train():
    raise ValueError("no such column: label")
train()
""")
    kept = tmp_path / "kept"
    code, said, job = run(
        tmp_path,
        {
            "command": ["train.py"],
            "retry": {"maxRestarts": 1},
            "output": {"uri": kept.as_uri()},
            "pod": {"env": [{"name": "GREETING", "value": "hello"}]},
        },
    )
    failure = job.status.last_failure
    assert code == ExitCode.INTERNAL, said
    assert job.status.phase is Phase.Failed
    assert failure is not None
    assert (failure.failure_class, failure.reason, failure.rank) == (FailureClass.Internal, "ScriptFailed", 0)
    assert failure.message == "rank 0 exited with status 1: ValueError: no such column: label"
    assert failure.attempt == 2, "one restart was allowed"
    assert "restart 1 of 1" in said
    logs = [(kept / ".finetune" / job.metadata.uid / "attempts" / f"{n}" / "node-0.log").read_text() for n in (1, 2)]
    assert ["attempt 1 of mine hello" in logs[0], "attempt 2 of mine hello" in logs[1]] == [True, True]
    assert "in train" in logs[1]


def test_a_script_that_is_not_there_is_never_retried(tmp_path: Path) -> None:
    code, said, job = run(tmp_path, {"command": ["python", "elsewhere.py"]})
    assert code == ExitCode.CONFIG, said
    assert job.status.last_failure is not None
    assert (job.status.last_failure.reason, job.status.attempt) == ("CommandMissing", 1)
    assert f"file elsewhere.py not found in {tmp_path}" in job.status.last_failure.message


class Node:
    """One agent with a script as its ranks."""

    def __init__(self, folder: Path, source: str, *, stall: str = "10m", ranks: int = 2) -> None:
        (folder / "train.py").write_text(source)
        spec = FineTuneJobSpec(
            command=("python", str(folder / "train.py")),
            output=Output(uri=(folder / "kept").as_uri()),
            deadlines=Deadlines(stall=stall),
        )
        plan = RunPlan(
            job=JobIdentity(namespace="default", name="mine", uid="u"),
            processes_per_node=ranks,
            master_port=free_port(),
            grace_seconds=20,
            spec=spec,
        )
        self.folder, self.run_dir, self.log = folder, RunDir(folder / "run"), folder / "agent.log"
        (folder / "plan.json").write_text(json.dumps(plan.to_json()))
        command = [sys.executable, "-m", "finetune_trainer.cli.main", "agent", "--listen", "none", "--local"]
        command += ["--plan", str(folder / "plan.json"), "--run-dir", str(self.run_dir.path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", names.ENV_TERMINATION_LOG: str(folder / "words")}
        with self.log.open("wb") as log:
            self.process = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def until(self, file: str) -> None:
        deadline = time.monotonic() + 180
        while not (self.folder / file).exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> TerminationMessage:
        self.process.wait(240)
        return TerminationMessage.model_validate_json((self.folder / "words").read_bytes())


def test_a_script_gets_sigterm_and_its_grace_and_silence_is_no_hang(tmp_path: Path) -> None:
    """It never reports and prints nothing for longer than `deadlines.stall`, then is asked to stop, saves, and ends."""
    node = Node(
        tmp_path,
        """
import os, signal, sys, time
from pathlib import Path
rank = os.environ["RANK"]
def save(*_):
    time.sleep(1)
    Path(f"saved-{rank}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
time.sleep(2)
Path(f"ready-{rank}").touch()
time.sleep(600)
""",
        stall="1s",
    )
    for rank in (0, 1):
        node.until(f"ready-{rank}")
    assert set(node.run_dir.heartbeats()) == {0, 1}, "torchrun's ranks count as alive"
    node.process.send_signal(signal.SIGTERM)
    words = node.end()
    assert (words.reason, words.failure_class) == (Reason.Interrupted, FailureClass.Preemption), node.log.read_text()
    assert node.process.returncode == ExitCode.INTERRUPTED
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}


def test_a_script_that_reported_and_fell_silent_hangs(tmp_path: Path) -> None:
    node = Node(
        tmp_path,
        """
import json, os, time, urllib.request
if os.environ["RANK"] == "0":
    token = open(os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read()
    metrics = [{"name": "current_step", "value": "3"}, {"name": "total_steps", "value": "9"}]
    body = json.dumps({"trainerStatus": {"progressPercentage": 33, "metrics": metrics}}).encode()
    request = urllib.request.Request(os.environ["KUBEFLOW_TRAINER_SERVER_URL"], data=body, method="POST")
    request.add_header("Authorization", f"Bearer {token}")
    while not os.path.exists("waiting"):
        time.sleep(0.05)
    urllib.request.urlopen(request)
def wait_for_a_peer_that_never_comes():
    open("waiting", "w").close()
    time.sleep(600)
wait_for_a_peer_that_never_comes()
""",
        stall="2s",
    )
    words = node.end()
    assert (words.reason, words.failure_class, words.step) == (Reason.NoProgress, FailureClass.Hang, 3)
    assert words.plan is not None
    stacks = sorted((tmp_path / "kept" / ".finetune" / "u" / "attempts" / "1").glob("stacks-*.txt"))
    assert [path.name for path in stacks] == ["stacks-0.txt", "stacks-1.txt"]
    assert "in wait_for_a_peer_that_never_comes" in stacks[1].read_text()
