"""The cache of tokenised data: made once, whole or not at all, and bounded."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from finetune_trainer.data.cache import kept, prune

DAY = 86400


def make(root: Path, name: str, *, days: float, size: int = 100) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "tokens").write_bytes(bytes(size))
    os.utime(folder, (time.time() - days * DAY,) * 2)
    return folder


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


def test_what_is_old_or_too_much_goes_the_least_recently_used_first(tmp_path: Path) -> None:
    new = make(tmp_path, "new", days=0)
    for name, days in (("ancient", 40), ("older", 3), ("old", 2), ("recent", 1)):
        make(tmp_path, name, days=days)
    prune(tmp_path, keep=new, most_bytes=300, most_days=30)
    assert names(tmp_path) == {"new", "recent", "old"}


def test_what_was_just_made_stays_whatever_its_size(tmp_path: Path) -> None:
    prune(tmp_path, keep=make(tmp_path, "new", days=0, size=1000), most_bytes=10)
    assert names(tmp_path) == {"new"}


def test_halves_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    make(tmp_path, ".dead-1", days=2)
    make(tmp_path, ".alive-1", days=0.1)
    prune(tmp_path, keep=make(tmp_path, "new", days=0), most_bytes=0)
    assert names(tmp_path) == {".alive-1", "new"}


def test_what_another_process_holds_stays(tmp_path: Path) -> None:
    held = make(tmp_path, "held", days=99)
    with held.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prune(tmp_path, keep=make(tmp_path, "new", days=0))
        assert names(tmp_path) == {"held", "new"}
    prune(tmp_path, keep=tmp_path / "new")
    assert names(tmp_path) == {"new"}


def test_use_makes_young_again(tmp_path: Path) -> None:
    make(tmp_path, "a", days=29)
    with kept(tmp_path / "a", lambda _: pytest.fail("it is there")) as folder:
        assert time.time() - folder.stat().st_mtime < DAY


def test_a_failure_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").touch()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), kept(tmp_path / "a", fail):
        pass
    assert names(tmp_path) == set()
    with kept(tmp_path / "a", lambda into: (into / "whole").touch()) as folder:
        assert [path.name for path in folder.iterdir()] == ["whole"]
