"""The kit for a borrowed GPU, whole, on CPUs: a loan is not to be spent on a typing mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.gpu.parts import parts_of
from tests.gpu.sizes import REHEARSAL

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, ROOT / "tests" / "gpu" / "run.py", "--rehearsal", "--out"]
SKIPPED_WITHOUT_A_GPU = ("a GPU is seen", "attention by flash-attn")


@pytest.mark.timeout(1800)
def test_every_part_of_the_kit_runs_and_nothing_is_wrong(tmp_path: Path) -> None:
    made = subprocess.run([ROOT / "tools" / "deepspeed.sh"], capture_output=True, text=True, check=False)
    done = subprocess.run([*COMMAND, tmp_path, "--budget", "1700"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["parts"]) == {part.name for part in parts_of(REHEARSAL)}
    checks = [check for part in results["parts"].values() for check in part["checks"]]
    allowed = SKIPPED_WITHOUT_A_GPU if made.returncode == 0 else (*SKIPPED_WITHOUT_A_GPU, "right/zero")
    skipped = [check["name"] for check in checks if check["verdict"] == "skipped"]
    assert [name for name in skipped if not name.startswith(allowed)] == []
    assert len(results["verdicts"]) > 20
    assert "## On a GPU" in (tmp_path / "on-a-gpu.md").read_text()


def test_a_kit_that_is_stopped_keeps_what_it_knows_and_leaves_nobody(tmp_path: Path) -> None:
    process = subprocess.Popen([*COMMAND, tmp_path, "--only", "right/machine", "right/reference"])
    file = tmp_path / "results.json"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and _state(file, "right/reference") != "running":
        time.sleep(0.2)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)

    assert process.wait(300) == 1
    _, alive = psutil.wait_procs(below, timeout=120)
    assert alive == []
    assert _state(file, "right/machine") == "done"
    assert _state(file, "right/reference") == "the run was stopped"


def test_an_unknown_part_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, tmp_path, "--only", "rihgt"], capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "no part is called rihgt; there are right/machine, " in done.stdout


def _state(file: Path, part: str) -> str:
    try:
        return str(json.loads(file.read_text())["parts"][part]["state"])
    except (OSError, ValueError, KeyError):
        return ""
