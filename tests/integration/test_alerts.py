"""Alerts on a real rule engine: promtool plays every case of tests/unit/alerts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig.prometheus import check_rules, run_rule_tests
from tests.cluster.rig.state import Paths, RigError
from tests.support.alert_cases import Case, cases
from tools import alerts
from tools.dashboard_panels import DASHBOARDS

pytestmark = pytest.mark.usefixtures("promtool")


def written(file: Path, rules: list[alerts.Rule]) -> Path:
    file.write_text(json.dumps(alerts.group(rules)))  # JSON is YAML
    return file


def test_promtool_finds_nothing_wrong_with_the_rules(tmp_path: Path) -> None:
    rules = [alerts.render(source, base="https://example.org/") for source in alerts.load().values()]
    check_rules(written(tmp_path / "rules.json", rules), paths=Paths())


def test_promtool_understands_the_queries_of_all_dashboards(tmp_path: Path) -> None:
    queries = {
        query.expr for each in DASHBOARDS for row in each.rows for panel in row.panels for query in panel.queries
    }
    plain = [query.replace("$__rate_interval", "1m").replace("$__range", "6h") for query in sorted(queries)]
    check_rules(written(tmp_path / "rules.json", [{"record": f"q:{n}", "expr": q} for n, q in enumerate(plain)]),
                paths=Paths())  # fmt: skip


def played(case: Case, folder: Path) -> Path:
    """The promtool test of a case, next to the rules that it needs."""
    folder.mkdir()
    test = folder / "test.json"
    test.write_text(json.dumps(case.test(written(folder / "rules.json", case.rules()))))
    return test


@pytest.mark.parametrize("alert", alerts.load())
def test_an_alert_fires_where_it_should_and_nowhere_else(alert: str, tmp_path: Path) -> None:
    own = [case for case in cases() if case.alert == alert]
    run_rule_tests(*(played(case, tmp_path / str(number)) for number, case in enumerate(own)), paths=Paths())


@pytest.mark.parametrize("wrong", [{"fires": False}, {"fires": {"name": "b"}}, {"also": {"FineTuneJobSlow": {}}}])
def test_a_case_that_expects_something_else_is_found(wrong: dict[str, Any], tmp_path: Path) -> None:
    right = next(case for case in cases() if case.alert == "FineTuneJobStalled" and case.firing)
    with pytest.raises(RigError, match="FAILED"):
        run_rule_tests(played(replace(right, **wrong), tmp_path / "wrong"), paths=Paths())
