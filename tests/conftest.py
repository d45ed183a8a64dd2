"""For every suite: one thread a process, before anybody imports torch. More would only fight over the same cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.support.quick import Quick


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out tests that start a process, and some cases")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        config.pluginmanager.register(Quick())
