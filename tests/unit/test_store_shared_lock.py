"""The lock on a volume: one holder at a time, none for ever, whether its holder lives, died here, or died elsewhere."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune_trainer.store import shared_lock
from finetune_trainer.store.shared_lock import Pace, held
from tests.support.shared_models import QUICK

SOON = replace(QUICK, dead=0.1)
"""Takes over what nobody holds."""

# The lock


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        with held(tmp_path / "lock", pace=QUICK):
            inside += 1
            most = max(most, inside)
            time.sleep(0.005)
            inside -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(12)))
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_lives_keeps_its_lock_however_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiter sees a sign of life at every second look, and by its clock looks twice before it would take over."""
    lock, now, looks = tmp_path / "lock", [time.monotonic()], 0
    monkeypatch.setattr(shared_lock, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))

    def waiting() -> None:
        nonlocal looks
        if looks % 2:
            touched(lock)
        now[0] += 0.45 * QUICK.dead
        looks += 1
        if looks == 20:
            raise TimeoutError

    with held(lock, pace=QUICK), pytest.raises(TimeoutError), held(lock, pace=QUICK, waiting=waiting):
        pass
    with held(lock, pace=QUICK):
        assert lock.exists()


def touched(file: Path) -> None:
    """Waits for it."""
    before, end = file.stat().st_mtime_ns, time.monotonic() + 120
    while file.stat().st_mtime_ns == before:
        assert time.monotonic() < end, "no sign of life"
        time.sleep(0.005)


HOLD = (
    "import sys, time; from pathlib import Path; from finetune_trainer.store.shared_lock import Pace, held\n"
    "with held(Path(sys.argv[1]), pace=Pace()):\n    print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A lock whose holder was killed."""
    lock = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.kill()
    process.wait()
    return lock


def test_the_lock_of_a_process_of_this_machine_that_was_killed_is_taken_soon(killed: Path) -> None:
    patient = Pace(beat=0.02, dead=1e9, dead_here=0.1, poll=0.01)
    with held(killed, pace=patient):
        assert killed.exists()
    assert list(killed.parent.iterdir()) == []


def test_the_lock_of_a_process_of_another_machine_is_taken_once_nothing_touched_it(killed: Path) -> None:
    killed.write_text(json.dumps({"token": "x", "boot": "another machine"}))
    hopeless = Pace(beat=0.02, dead=1e9, dead_here=0.0, poll=0.01)
    looks = 0

    def waiting() -> None:
        nonlocal looks
        looks += 1
        if looks > 20:
            raise TimeoutError

    with pytest.raises(TimeoutError), held(killed, pace=hopeless, waiting=waiting):
        pass
    with held(killed, pace=SOON):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 1}'])
def test_a_file_that_is_no_lock_is_taken_over_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    with held(tmp_path / "lock", pace=SOON):
        assert "token" in (tmp_path / "lock").read_text()


def test_a_lock_that_cannot_be_written_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"), held(tmp_path / "lock", pace=QUICK):
        pass
    assert list(tmp_path.iterdir()) == []
