"""`pytest --quick` leaves out what starts a process, however it does, further cases of long tests, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
CONFTEST = """
from tests.support import quick

def pytest_configure(config):
    quick.ENOUGH = 0.0
    config.pluginmanager.register(quick.Quick())
"""
TESTS = """
import multiprocessing, os, subprocess, sys, threading
import pytest

def test_with_a_command():
    subprocess.run([sys.executable, "--version"])

def test_with_a_fork():
    if os.fork() == 0:
        os._exit(0)

def test_with_multiprocessing():
    multiprocessing.get_context("spawn").Process(target=print).start()

def test_that_catches_what_it_can():
    try:
        subprocess.run([sys.executable, "--version"])
    except Exception:
        pass

def test_in_a_thread():
    thread = threading.Thread(target=lambda: subprocess.run([sys.executable, "--version"]))
    thread.start()
    thread.join()

@pytest.fixture(scope="module")
def command():
    return subprocess.run([sys.executable, "--version"])

def test_with_a_fixture(command):
    pass

def test_with_the_same_fixture(command):
    pass

def test_that_imports_what_starts_a_process():
    import starts_at_import

@pytest.mark.parametrize("number", range(9))
def test_with_cases(number):
    assert number < 9

def test_without():
    assert 1 + 1 == 2

def test_that_fails():
    assert 1 + 1 == 3
"""


def test_only_what_starts_a_process_is_left_out(pytester: pytest.Pytester) -> None:
    """In a process of its own, since a hook for audits stays for good: so `make quick` leaves this test out too."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(starts_at_import="import subprocess\nsubprocess.run(['true'])\n", test_all=TESTS)
    root = Path(__file__).parents[2]
    pytester.syspathinsert(root)
    done = pytester.run(
        sys.executable, "-c", f"import sys, pytest; sys.path.insert(0, {str(root)!r}); sys.exit(pytest.main())",
        "-p", "no:cacheprovider", "-W", "ignore",
    )  # fmt: skip
    done.assert_outcomes(passed=4, failed=1, skipped=14)
