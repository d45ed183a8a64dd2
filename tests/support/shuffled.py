"""A pytest plugin for `tools/shake.py`: other random numbers, another order, threads that are held up.

    pytest -p tests.support.shuffled --shake-seed 1 --shake-order 1 --shake-threads 1

`--shake-seed N` adds N to every seed that a test gives to torch or numpy; `--shake-order N` shuffles the files, and the
tests within each file; `--shake-threads N` holds up a thread now and then, wherever it is, as a busy machine does, and
switches between threads after microseconds in some tests and after tenths of a second in others."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Generator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shake-seed", type=int, default=0)
    parser.addoption("--shake-order", type=int, default=0)
    parser.addoption("--shake-threads", type=int, default=0)


def pytest_configure(config: pytest.Config) -> None:
    if seed := config.getoption("--shake-threads"):
        config.pluginmanager.register(HeldUp(seed))
    if not (offset := config.getoption("--shake-seed")):
        return
    import numpy as np
    import torch

    def moved(function: Any) -> Any:
        return lambda seed=None, *rest: function(seed + offset if isinstance(seed, int) else seed, *rest)

    torch.manual_seed = moved(torch.manual_seed)
    np.random.default_rng = moved(np.random.default_rng)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (seed := config.getoption("--shake-order")):
        return
    by_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(str(item.path), []).append(item)
    draw, files = random.Random(seed), list(by_file.values())
    draw.shuffle(files)
    for file in files:
        draw.shuffle(file)
    items[:] = [item for file in files for item in file]


class HeldUp:
    """A plugin: threads pause at calls of functions, by chance."""

    LONGEST = 1.0
    """Seconds. Most pauses are much shorter, and all together take a third of the time."""

    def __init__(self, seed: int) -> None:
        self.draw, self.due = random.Random(seed), 0.0

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self) -> Generator[None, None, None]:
        before = sys.getswitchinterval()
        self.due = time.monotonic() + 0.02 * self.draw.random()
        sys.setswitchinterval(self.draw.choice([1e-6, before, 0.2]))
        threading.setprofile(self._pause)
        sys.setprofile(self._pause)
        yield
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        sys.setswitchinterval(before)

    def _pause(self, _frame: object, event: str, _argument: object) -> None:
        if event == "call" and (now := time.monotonic()) >= self.due:
            pause = self.LONGEST * self.draw.random() ** 4
            self.due = now + 3 * pause + 0.02 * self.draw.random()
            time.sleep(pause)
