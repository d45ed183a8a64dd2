"""A process that is killed while its background thread saves: the next one ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training import Knobs, Run, largest_difference, make_run

ROOT = Path(__file__).resolve().parents[2]
KNOBS = Knobs(steps=6, checkpoint_steps=2)

KILLED = """
import os, signal, sys
from pathlib import Path
from finetune_trainer.store.local import LocalFolder
from tests.e2e.test_train_killed import KNOBS
from tests.support.training import make_run

put = LocalFolder.put

def dies(folder, last):
    writes = []

    def deadly(self, path, data):
        writes.append(path)
        if len(writes) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, path, data)

    LocalFolder.put = deadly
    make_run(folder, KNOBS).finish()

for last in sys.argv[2:]:  # each in a process of its own, which imports nothing again
    child = os.fork()
    if child == 0:
        dies(Path(sys.argv[1]) / last, int(last))
        os._exit(0)
    print("write", last, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
KILLS = {
    "files of the first save": (2, 0),
    "files of the second save": (6, 2),
    "the manifest of the second save": (8, 2),
}
"""The write at which a run is killed, and the step from which the next one resumes."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each write a folder of that name, with what the run had stored by then."""
    root = tmp_path_factory.mktemp("killed")
    writes = [str(write) for write, _ in KILLS.values()]
    command = [sys.executable, "-c", KILLED, str(root), *writes]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    ended = [line for line in done.stdout.splitlines() if line.startswith("write ")]
    assert ended == [f"write {write} {-signal.SIGKILL}" for write in writes], done.stderr[-2000:]
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_run(tmp_path_factory.mktemp("whole"), KNOBS)
    run.finish()
    return run


@pytest.mark.parametrize(("write", "resumes"), KILLS.values(), ids=KILLS)
def test_a_run_killed_during_a_save_goes_on_to_the_bit(killed: Path, whole: Run, write: int, resumes: int) -> None:
    """A save writes three files and then its manifest."""
    folder = killed / str(write)
    assert make_run(folder, KNOBS).start().step == resumes
    resumed = make_run(folder, KNOBS)
    resumed.finish()
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0
