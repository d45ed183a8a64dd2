"""`make test`: every check and test that this machine allows, in order of cost, with what was skipped and why.

    python tools/check.py [static|unit|e2e|integration|cluster ...]

A failing stage does not hide the ones after it; the exit code is 1 if any failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = ROOT / ".venv" / "bin"
CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache" / "finetune-operator"))
REPORTS = CACHE / "reports"

STATIC = (
    ("lint", ["ruff", "check", "-q", "."]),
    ("format", ["ruff", "format", "--check", "-q", "."]),
    ("types", ["mypy", "--cache-dir", str(CACHE / "mypy")]),
    ("layers", ["lint-imports", "--no-cache"]),
)
SUITES = ("unit", "e2e", "integration", "cluster")
PYTEST = """
import atexit, os, sys, pytest
status = pytest.main(sys.argv[1:])
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
"""The tests' verdict is the status, and not how an interpreter with torch in it is taken apart."""


@dataclass
class Outcome:
    """How one stage went."""

    name: str
    ok: bool
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    """Test → reason."""


def main(wanted: list[str]) -> int:
    unknown = set(wanted) - {"static", *SUITES}
    if unknown:
        print(f"check: no stage is called {', '.join(sorted(unknown))}; there are static, {', '.join(SUITES)}")
        return 64
    stages = wanted or ["static", *SUITES]
    REPORTS.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    if "static" in stages:
        outcomes += [static(name, command) for name, command in STATIC]
    if {"unit", "e2e", "cluster"} & set(stages):
        outcomes.append(static("model", ["python", "tools/models.py"]))
    outcomes += [suite(name) for name in SUITES if name in stages]
    return tell(outcomes)


def static(name: str, command: list[str]) -> Outcome:
    print(f"== {name}: {' '.join(command)}", flush=True)
    began = time.monotonic()
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, check=False)
    return Outcome(name, done.returncode == 0, time.monotonic() - began)


def suite(name: str) -> Outcome:
    folder = ROOT / "tests" / name
    report = REPORTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    print(f"== {name} tests", flush=True)
    began = time.monotonic()
    command = [BIN / "python", "-c", PYTEST, folder, f"--junitxml={report}", "--durations=8", "--durations-min=5"]
    if name == "unit":
        command += ["-n", "2", "--dist", "loadgroup"]
    else:
        command += ["-p", "no:hypothesispytest"]  # only unit tests draw examples
    done = subprocess.run(command, cwd=ROOT, check=False)
    seconds = time.monotonic() - began
    if not report.exists():
        return Outcome(name, False, seconds, failed=1)
    cases = list(ET.parse(report).iter("testcase"))
    skipped = {
        f"{case.get('classname')}.{case.get('name')}": element.get("message", "")
        for case in cases
        if (element := case.find("skipped")) is not None
    }
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    return Outcome(name, done.returncode == 0, seconds, len(cases) - failed - len(skipped), failed, skipped)


def tell(outcomes: list[Outcome]) -> int:
    print("\n== where the time went")
    for outcome in outcomes:
        counts = (
            f"{outcome.passed} passed, {outcome.failed} failed, {len(outcome.skipped)} skipped"
            if outcome.name in SUITES
            else ""
        )
        print(f"   {'ok    ' if outcome.ok else 'FAILED'} {outcome.name:<12} {outcome.seconds:7.1f} s  {counts}")
    skipped = {test: reason for outcome in outcomes for test, reason in outcome.skipped.items()}
    if skipped:
        print("== skipped, by name and reason")
        for test, reason in sorted(skipped.items()):
            print(f"   {test}: {reason}")
    broken = [outcome for outcome in outcomes if not outcome.ok]
    passed = sum(outcome.passed for outcome in outcomes) + sum(o.ok for o in outcomes if o.name not in SUITES)
    failed = sum(outcome.failed for outcome in outcomes) + sum(not o.ok for o in outcomes if o.name not in SUITES)
    if broken and not failed:
        failed = len(broken)
    print(f"{passed} passed, {failed} failed, {len(skipped)} skipped")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
