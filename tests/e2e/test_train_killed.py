"""A process that is killed while its background thread saves: the next one ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train_helpers import Knobs, largest_difference, make_run

ROOT = Path(__file__).resolve().parents[2]
KNOBS = Knobs(steps=6, checkpoint_steps=2)

KILLED = """
import os, signal, sys
from pathlib import Path
from finetune_trainer.store.local import LocalFolder
from tests.e2e.test_train_killed import KNOBS
from tests.train_helpers import make_run

writes, last, put = [], int(sys.argv[2]), LocalFolder.put

def deadly(folder, path, data):
    writes.append(path)
    if len(writes) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    put(folder, path, data)

LocalFolder.put = deadly
make_run(Path(sys.argv[1]), KNOBS).finish()
"""


@pytest.mark.parametrize(
    ("write", "resumes"),
    [(2, 0), (6, 2), (8, 2)],
    ids=["files of the first save", "files of the second save", "the manifest of the second save"],
)
def test_a_run_killed_during_a_save_goes_on_to_the_bit(tmp_path: Path, write: int, resumes: int) -> None:
    """A save writes three files and then its manifest."""
    whole = make_run(tmp_path / "whole", KNOBS)
    whole.finish()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), str(write)]
    killed = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert make_run(tmp_path / "cut", KNOBS).start().step == resumes
    resumed = make_run(tmp_path / "cut", KNOBS)
    resumed.finish()
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0
