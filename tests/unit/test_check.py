"""What `make test` counts as proved: a skip that nobody agreed to is a failure where CI=true."""

from __future__ import annotations

import re
import threading
import tomllib
from pathlib import Path

import pytest

from tools import check
from tools.check import SKIPS, Outcome, Preparation, report, summary

ROOT = Path(__file__).parents[2]
LISTED = {"tests.unit.test_a.test_optional": "an optional package"}


def outcome(**changes: object) -> Outcome:
    return Outcome(**{"name": "unit", "ok": True, "seconds": 1.0, "passed": 3, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcomes", "strict", "last_line"),
    [
        ([outcome()], True, "3 passed, 0 failed, 0 skipped by list, 0 could not run here"),
        (
            [outcome(skipped={"tests.unit.test_a.test_optional[x]": "not installed"})],
            True,
            "3 passed, 0 failed, 1 skipped by list, 0 could not run here",
        ),
        (
            [outcome(skipped={"tests.cluster.test_b.test_pod": "no root"})],
            False,
            "3 passed, 0 failed, 0 skipped by list, 1 could not run here",
        ),
        (
            [outcome(skipped={"tests.cluster.test_b.test_pod": "no root"})],
            True,
            "3 passed, 1 failed, 0 skipped by list, 1 could not run here",
        ),
        ([outcome(ok=False, failed=2)], True, "3 passed, 2 failed, 0 skipped by list, 0 could not run here"),
        ([outcome(ok=False)], True, "3 passed, 1 failed, 0 skipped by list, 0 could not run here"),
        (
            [outcome(name="lint", passed=0), outcome(name="types", passed=0, ok=False)],
            True,
            "1 passed, 1 failed, 0 skipped by list, 0 could not run here",
        ),
    ],
    ids=["all pass", "a listed skip", "a skip on a laptop", "a skip in CI", "failed tests", "a crash", "checks"],
)
def test_what_is_counted(
    outcomes: list[Outcome], strict: bool, last_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = summary(outcomes, listed=LISTED, strict=strict)
    assert found.last_line == last_line
    assert report(outcomes, found, seconds=60) == ("0 failed" not in last_line)
    assert capsys.readouterr().out.splitlines()[-1] == last_line


def test_the_tests_that_failed_are_named_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [outcome(ok=False, failed=1, failures=("tests.e2e.test_a.test_run",)), outcome(name="cluster")]
    assert report(outcomes, summary(outcomes, listed={}, strict=True), seconds=60) == 1
    assert "tests.e2e.test_a.test_run" in capsys.readouterr().out.rpartition("== failed")[2]


def test_every_suite_runs_once_and_in_order() -> None:
    assert [name for names in check.AT_ONCE for name in names] == list(check.SUITES)


def test_suites_of_one_group_run_at_the_same_time_with_ports_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both, given = threading.Barrier(2, timeout=60), dict[str, range]()

    def suite(name: str, *, quick: bool, log: Path | None, ports: range) -> Outcome:
        both.wait()
        given[name] = ports
        if log:
            log.write_text("printed by the second")
        return outcome(name=name)

    monkeypatch.setattr(check, "suite", suite)
    monkeypatch.setattr(check, "REPORTS", tmp_path)
    monkeypatch.setenv("FINETUNE_RIG_PORTS", "20000-20999")
    outcomes = check.at_once(["integration", "cluster"], Preparation(None, tmp_path), quick=False)
    assert [each.name for each in outcomes] == ["integration", "cluster"]
    assert given == {"integration": range(20000, 20500), "cluster": range(20500, 21000)}
    assert capsys.readouterr().out == "printed by the second\n"


def test_every_listed_skip_is_a_test_with_a_reason() -> None:
    for name, reason in tomllib.loads(SKIPS.read_text()).items():
        module, _, test = name.rpartition(".")
        assert re.search(rf"^def {test}\(", (ROOT / f"{module.replace('.', '/')}.py").read_text(), re.MULTILINE)
        assert len(reason) > 10
