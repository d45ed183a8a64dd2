"""A pytest plugin for `tools/shake.py`: other random numbers, another order.

    pytest -p tests.support.shuffled --shake-seed 1 --shake-order 1

`--shake-seed N` adds N to every seed that a test gives to torch or numpy; `--shake-order N` shuffles the files, and the
tests within each file."""

from __future__ import annotations

import random
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shake-seed", type=int, default=0)
    parser.addoption("--shake-order", type=int, default=0)


def pytest_configure(config: pytest.Config) -> None:
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
