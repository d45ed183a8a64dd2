"""`finetune run` on a real terminal: a live display, and Ctrl-C that the ranks do not feel."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest
import yaml

from finetune_api.failures import ExitCode
from tests.support.pause_at_step import PauseAtStep
from tests.support.tiny_model import tiny_corpus, tiny_model

pytestmark = pytest.mark.timeout(600)


class Terminal:
    """A program on a pseudo terminal, as its controlling one."""

    def __init__(self, *command: str, folder: Path, environment: dict[str, str]) -> None:
        self.seen = ""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ.update(environment, TERM="xterm", COLUMNS="120", OMP_NUM_THREADS="1")
            os.execv(command[0], command)

    def read_until(self, words: str, *, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < deadline, self.seen[-3000:]
            if not self._read():
                break
        assert words in self.seen, self.seen[-3000:]

    def _read(self) -> bool:
        """False once the program has closed the terminal."""
        if not select.select([self.master], [], [], 0.2)[0]:
            return True
        try:
            self.seen += os.read(self.master, 65536).decode(errors="replace")
        except OSError:
            return False
        return True

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def end(self) -> int:
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.master)
        return os.waitstatus_to_exitcode(status)


def test_live_progress_then_ctrl_c_then_resume(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    tiny_corpus(tmp_path / "corpus", rows=64)
    manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "seen"},
        "spec": {
            "model": {"uri": (tmp_path / "model").as_uri()},
            "data": {"train": [{"uri": (tmp_path / "corpus" / "train.jsonl").as_uri()}], "sequenceLength": 128},
            "training": {"epochs": 500, "batchSize": 16, "maxSteps": 60, "evaluateEvery": 40},
            "output": {"uri": (tmp_path / "output").as_uri()},
            "nodes": 2,
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    command = (sys.executable, "-m", "finetune_trainer.cli.main", "run", "job.yaml")

    pause = PauseAtStep(tmp_path / "pause", step=30)
    first = Terminal(*command, folder=tmp_path, environment=pause.environment)
    first.read_until("left")
    first.press(b"\x03")
    first.read_until("run again to resume")
    assert first.end() == ExitCode.INTERRUPTED
    assert "2 of 2" in first.seen
    assert "Traceback" not in first.seen

    pause.release()
    second = Terminal(*command, folder=tmp_path, environment=pause.environment)
    second.read_until("60/60 (100 %)")
    second.read_until("report.html")
    assert second.end() == ExitCode.OK
    assert "resuming run" in second.seen
