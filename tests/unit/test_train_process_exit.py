"""A rank's process ends with its own code, whatever taking the interpreter apart would do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[2] / "trainer" / "finetune_trainer"

PROGRAM = """
import atexit, os, sys, threading, time
from finetune_trainer.train.process_exit import SaveThread, exit_process

def save(leaving):
    assert leaving.wait(600)
    time.sleep(0.3)
    open(sys.argv[1], "w").write("whole")

SaveThread(save, name="checkpoint-7").start()
threading.Thread(target=time.sleep, args=(600,)).start()
atexit.register(os.abort)
print("said")
exit_process(int(sys.argv[2]))
"""


@pytest.mark.parametrize("code", [0, 65])
def test_saves_end_and_words_are_written_and_the_end_of_libraries_counts_for_nothing(tmp_path: Path, code: int) -> None:
    kept = tmp_path / "checkpoint"
    command = [sys.executable, "-c", PROGRAM, str(kept), str(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (code, "said\n"), done.stderr
    assert kept.read_text() == "whole"


def test_every_program_of_the_trainer_ends_so() -> None:
    """But for the command line's: of its commands the agent alone has threads in a library, and ends so itself."""
    ends = {}
    for file in TRAINER.rglob("*.py"):
        _, main, end = file.read_text().partition('if __name__ == "__main__":\n')
        if main:
            ends[file.relative_to(TRAINER).as_posix()] = "exit_process(main())" in end or "os._exit(" in end
    assert ends.pop("cli/main.py") is False
    assert len(ends) >= 4
    assert all(ends.values()), ends
