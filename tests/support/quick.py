"""`pytest --quick`, for every edit: what a test does decides whether it is left out, and nobody keeps a list.

    processes  a test is left out at the moment at which it tries to start one. Those that start while a module is
               imported are the module's, and may start
    cases      of a parametrized test that has used two seconds of CPU time, the further cases are left out

`tools/check.py quick` counts what was left out; `make unit` runs it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

PROCESSES = "starts a process"
CASES = "further cases of a test that takes its time"
REASONS = (PROCESSES, CASES)
ENOUGH = 2.0
"""Seconds of CPU time for the cases of one test, in each process that runs tests."""

EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec")


class Quick:
    """A plugin of pytest. Whatever becomes of the exception in the test's thread, the test counts as skipped."""

    def __init__(self) -> None:
        self.testing = self.tried = False
        self.used: Counter[str] = Counter()
        """CPU seconds by test, all its cases together."""
        sys.addaudithook(self._audit)
        self._guard_multiprocessing()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, None, None]:
        self.testing, self.tried = True, False
        began = time.process_time()
        yield
        self.testing = False
        test = _test_of(item)
        self.used[test] += time.process_time() - began if test in self.used else 0.0  # the first may import for all

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.used[_test_of(item)] > ENOUGH:
            pytest.skip(CASES)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, None]:
        report = (yield).get_result()
        if self.tried and report.when != "teardown":
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {PROCESSES}")

    def _audit(self, event: str, _: Any) -> None:
        if event in EVENTS:
            self._refuse()

    def _guard_multiprocessing(self) -> None:
        """Its own way to start processes raises no audit event."""
        import _posixsubprocess

        start = _posixsubprocess.fork_exec

        def fork_exec(*arguments: Any) -> int:
            self._refuse()
            return int(start(*arguments))

        _posixsubprocess.fork_exec = fork_exec

    def _refuse(self) -> None:
        if self.testing and not _importing():
            self.tried = True
            pytest.skip(PROCESSES)


def _test_of(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _importing() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
