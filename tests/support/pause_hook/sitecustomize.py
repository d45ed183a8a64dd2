"""Makes a rank pause after a step of training for as long as a file says so: see tests/support/pause_at_step.py.

Its folder goes on the rank's PYTHONPATH."""

from __future__ import annotations

import os
import time
from pathlib import Path


def _hold(file: Path) -> None:
    from finetune_trainer.rundir import RunDir

    beat = RunDir.beat

    def held(run_dir: RunDir, rank: int, phase: str, step: int) -> None:
        beat(run_dir, rank, phase, step)
        while phase == "training" and step >= _step(file) and not run_dir.stop_requested:
            time.sleep(0.02)

    RunDir.beat = held  # type: ignore[method-assign]


def _step(file: Path) -> float:
    try:
        return float(file.read_text() or "inf")
    except FileNotFoundError:
        return float("inf")


if "RANK" in os.environ and "FINETUNE_TEST_PAUSE" in os.environ:
    _hold(Path(os.environ["FINETUNE_TEST_PAUSE"]))
