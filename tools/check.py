"""`make test`: every check and test that this machine allows, in order of cost, with what was skipped and why.

    python tools/check.py [static|unit|e2e|integration|cluster ...]
    python tools/check.py quick

`quick`, for every edit, is the static checks and those unit tests that start no process (tests/support/quick.py).
Integration and cluster tests run at the same time, since the first mostly wait; what the second print comes after them.
A failing stage does not hide the ones after it; the exit code is 1 if any failed. The programs of the test cluster are
built in the background, at the lowest priority, while the first stages run; a stage waits for those that it needs.
Where CI=true, a skipped test that is not in tests/skips.toml counts as failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.cluster.rig import build, machine  # noqa: E402  # tools/ is not a package that could be installed
from tests.cluster.rig.state import Paths, port_range, shares  # noqa: E402
from tests.support.quick import REASONS  # noqa: E402

BIN = ROOT / ".venv" / "bin"
CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache" / "finetune-operator"))
REPORTS = CACHE / "reports"
SKIPS = ROOT / "tests" / "skips.toml"

EXTERNAL = os.environ.get("FINETUNE_TEST_CLUSTER") == "external"

STATIC = (
    ("lint", ["ruff", "check", "-q", "."]),
    ("format", ["ruff", "format", "--check", "-q", "."]),
    ("types", ["mypy", "--cache-dir", str(CACHE / "mypy")]),
    ("layers", ["lint-imports", "--no-cache"]),
    ("words", ["python", "tools/words.py"]),
)
SUITES: dict[str, tuple[str, ...]] = {  # each suite, and the programs without which it cannot begin
    "unit": (),
    "e2e": build.S3,
    "integration": build.CONTROL_PLANE + build.S3 + build.KUEUE + build.HELM + build.HELM3 + build.MONITORING,
    "cluster": build.EVERYTHING,
}
TWO_AT_A_TIME = {"unit": "loadgroup", "e2e": "loadfile", "integration": "loadfile"}
"""Suites that run with two workers, and what stays on one of them. The cluster's node is one."""

AT_ONCE = ("unit",), ("e2e",), ("integration", "cluster")
"""Suites that run at the same time. Unit and e2e tests keep two cores busy by themselves; integration tests wait for
timers and an API server most of their time. On an external cluster, all suites run one after the other."""

PYTEST = """
import atexit, os, sys, pytest
status = pytest.main(sys.argv[1:])
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
"""The tests' verdict is the status, and not how an interpreter with torch in it is taken apart."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one stage went."""

    name: str
    ok: bool
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    """Test → reason."""
    failures: tuple[str, ...] = ()
    """Tests that failed."""
    waited: float = 0.0
    """Seconds before it, for programs that were still being built."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a run. `unproved` are tests that did not run and are not in tests/skips.toml."""

    passed: int
    failed: int
    listed: Mapping[str, str]
    unproved: Mapping[str, str]

    @property
    def last_line(self) -> str:
        counts = f"{self.passed} passed, {self.failed} failed"
        return f"{counts}, {len(self.listed)} skipped by list, {len(self.unproved)} could not run here"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/check.py", description="Run checks and tests; by default all of them.")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"static, {', '.join(SUITES)}; or quick alone")
    wanted = parser.parse_args().stages or ["static", *SUITES]
    quick = wanted == ["quick"]
    wanted = ["static", "unit"] if quick else wanted
    if unknown := set(wanted) - {"static", *SUITES}:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}; there are static, {', '.join(SUITES)}")
    REPORTS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with Preparation.begin([name for name in SUITES if name in wanted]) as preparation:
        if "static" in wanted:
            outcomes += [static(name, command) for name, command in STATIC]
        if {"unit", "e2e", "cluster"} & set(wanted):
            outcomes.append(static("model", ["python", "tools/models.py"]))
        for names in [(name,) for name in SUITES] if EXTERNAL else AT_ONCE:
            outcomes += at_once([name for name in names if name in wanted], preparation, quick=quick)
    listed = tomllib.loads(SKIPS.read_text())
    found = summary(outcomes, listed=listed, strict=os.environ.get("CI") == "true")
    return report(outcomes, found, seconds=time.monotonic() - began)


class Preparation:
    """Debian packages and programs of the test cluster, made by a process in the background."""

    def __init__(self, process: subprocess.Popen[bytes] | None, log: Path) -> None:
        self._process, self._log = process, log

    @staticmethod
    def begin(suites: list[str]) -> Preparation:
        """Starts what the suites need, in the order in which they need it, and says what and how long."""
        log = REPORTS / "prepare.log"
        needed = tuple(dict.fromkeys(program for name in suites for program in SUITES[name]))
        if not needed or EXTERNAL:
            return Preparation(None, log)
        if "cluster" in suites:
            machine.install_debian_packages()
        if missing := build.missing(needed, Paths()):
            seconds = sum(build.CPU_SECONDS.get(name, 5) for name in missing)
            print(
                f"== test cluster: building {len(missing)} programs from Go modules in the background, once: about "
                f"{seconds / 60:.0f} minutes of CPU time, {seconds / 60 / (os.cpu_count() or 1):.0f} on this machine's "
                f"{os.cpu_count()} cores. Log: {log}",
                flush=True,
            )
        command = ["nice", "-n", "19", BIN / "python", "-m", "tests.cluster.rig", "build", *needed]
        command += ["--image"] if "cluster" in suites else []
        with log.open("wb") as out:
            # Not a session of its own: where the kernel groups processes by session, `nice` counts only within one.
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, process_group=0)
        return Preparation(process, log)

    def wait_for(self, programs: tuple[str, ...]) -> float:
        """Until the programs are there, or will not come. Returns the seconds that this took, 0 for no wait."""
        if not programs or self._process is None:
            return 0.0
        began = time.monotonic()
        if missing := build.missing(programs, Paths()):
            print(f"== test cluster: waiting for {', '.join(missing)}", flush=True)
        while build.missing(programs, Paths()) and self._process.poll() is None:
            time.sleep(1)
        if self._process.poll():
            print(f"== test cluster: not complete; the log's end ({self._log}):\n{self._log.read_text()[-2000:]}")
        return time.monotonic() - began if missing else 0.0

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, 15)
            self._process.wait()


def at_once(names: list[str], preparation: Preparation, *, quick: bool) -> list[Outcome]:
    """Runs the suites at the same time, each as soon as its programs are there. The first prints as it runs; what the
    others print goes to a file, and follows when all have ended."""
    if not names:
        return []
    logs = [None, *(REPORTS / f"{name}.log" for name in names[1:])]
    ports = shares(port_range(), len(names))

    def run(name: str, log: Path | None, own: range) -> Outcome:
        waited = preparation.wait_for(SUITES[name])
        return replace(suite(name, quick=quick, log=log, ports=own), waited=waited)

    with ThreadPoolExecutor(len(names)) as pool:
        outcomes = list(pool.map(run, names, logs, ports))
    for log in filter(None, logs):
        print(log.read_text(errors="replace"), flush=True)
    return outcomes


def static(name: str, command: list[str]) -> Outcome:
    print(f"== {name}: {' '.join(command)}", flush=True)
    began = time.monotonic()
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, check=False)
    return Outcome(name=name, ok=done.returncode == 0, seconds=time.monotonic() - began)


def suite(name: str, *, quick: bool, log: Path | None, ports: range) -> Outcome:
    """Runs a suite's tests. `log`: the file for what they print. `ports`: those of the suite's servers."""
    folder = ROOT / "tests" / name
    file = REPORTS / f"{name}.xml"
    file.unlink(missing_ok=True)
    print(f"== {name} tests{f', which print to {log}' if log else ''}", flush=True)
    began = time.monotonic()
    command = [BIN / "python", "-c", PYTEST, folder, f"--junitxml={file}", "--durations=8", "--durations-min=5"]
    if quick:
        command.append("--quick")
    if name in TWO_AT_A_TIME and not (name == "integration" and EXTERNAL):
        command += ["-n", "2", "--dist", TWO_AT_A_TIME[name]]
    if name != "unit":
        command += ["-p", "no:hypothesispytest"]  # only unit tests draw examples
    environment = {**os.environ, "FINETUNE_RIG_PORTS": f"{ports.start}-{ports.stop - 1}"}
    with log.open("wb") if log else nullcontext() as out:
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=out, stderr=out)
    seconds = time.monotonic() - began
    if not file.exists():
        return Outcome(name=name, ok=False, seconds=seconds, failed=1)
    cases = list(ET.parse(file).iter("testcase"))
    skipped = {
        f"{case.get('classname')}.{case.get('name')}": element.get("message", "")
        for case in cases
        if (element := case.find("skipped")) is not None
    }
    left_out = {test: reason for test, reason in skipped.items() if quick and reason in REASONS}
    for reason, count in Counter(left_out.values()).items():
        print(f"== left out, {reason}: {count} tests, which `make unit` runs")
    cases = [case for case in cases if f"{case.get('classname')}.{case.get('name')}" not in left_out]
    skipped = {test: reason for test, reason in skipped.items() if test not in left_out}
    failures = tuple(
        f"{case.get('classname')}.{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    )
    return Outcome(
        name=name,
        ok=done.returncode == 0,
        seconds=seconds,
        passed=len(cases) - len(failures) - len(skipped),
        failed=len(failures),
        failures=failures,
        skipped=skipped,
    )


def summary(outcomes: list[Outcome], *, listed: Mapping[str, str], strict: bool) -> Summary:
    """Counts tests and checks. A stage that failed without a failed test counts as one failure, and where `strict`
    so does every test that was skipped without being listed."""
    skipped = {test: reason for outcome in outcomes for test, reason in outcome.skipped.items()}
    by_list = {test: reason for test, reason in skipped.items() if test.split("[")[0] in listed}
    unproved = {test: reason for test, reason in skipped.items() if test not in by_list}
    checks = [outcome for outcome in outcomes if outcome.name not in SUITES]
    failed = sum(max(outcome.failed, 0 if outcome.ok else 1) for outcome in outcomes)
    passed = sum(outcome.passed for outcome in outcomes) + sum(check.ok for check in checks)
    return Summary(passed=passed, failed=failed + strict * len(unproved), listed=by_list, unproved=unproved)


def report(outcomes: list[Outcome], found: Summary, *, seconds: float) -> int:
    """Prints how each stage went; `seconds` is what all took, some of them at the same time. Returns the exit code."""
    print(f"\n== where the time went: {seconds / 60:.1f} minutes")
    for outcome in outcomes:
        counts = (
            f"{outcome.passed} passed, {outcome.failed} failed, {len(outcome.skipped)} skipped"
            if outcome.name in SUITES
            else ""
        )
        waited = f", after {outcome.waited:.0f} s of waiting for programs" if outcome.waited else ""
        print(
            f"   {'ok    ' if outcome.ok else 'FAILED'} {outcome.name:<12} {outcome.seconds:7.1f} s  {counts}{waited}"
        )
    if failures := [test for outcome in outcomes for test in outcome.failures]:
        print("== failed")
        for test in failures:
            print(f"   {test}")
    for title, tests in (("skipped by list (tests/skips.toml)", found.listed), ("could not run here", found.unproved)):
        if tests:
            print(f"== {title}")
            for test, reason in sorted(tests.items()):
                print(f"   {test}: {reason}")
    print(found.last_line)
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
