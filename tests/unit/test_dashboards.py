"""Dashboards show every metric and every alert, ask only for what is exported, and have the shape that Grafana reads.

The shape is checked with the small models of tests/support/grafana_shape.py. tools/grafana_schema.sh compiles the same
files against the types of @grafana/schema, which needs the npm registry."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest

from finetune_api.series import SERIES, Scope, Unit
from tests.support.grafana_shape import Shape
from tools import alerts, dashboards
from tools.dashboard_panels import DASHBOARDS, Dashboard, Panel

PANELS = [panel for each in DASHBOARDS for row in each.rows for panel in row.panels]
METRIC = re.compile(r"finetune_\w+")
LABELS = {each.name: {*each.scope.labels, *each.labels} for each in SERIES}
each_dashboard = pytest.mark.parametrize("source", DASHBOARDS, ids=lambda each: each.uid)
each_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda each: each.title)


@each_dashboard
def test_it_has_the_shape_that_grafana_reads(source: Dashboard) -> None:
    made = dashboards.dashboard(source)

    Shape.model_validate_json(json.dumps(made))
    assert [each["id"] for each in made["panels"]] == list(range(1, len(made["panels"]) + 1))


@each_dashboard
def test_no_panel_covers_another(source: Dashboard) -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}

    places = [(each["title"], cells(each)) for each in dashboards.dashboard(source)["panels"]]
    assert all(0 <= x < 24 for _, own in places for x, _ in own)
    assert [(a[0], b[0]) for a, b in combinations(places, 2) if a[1] & b[1]] == []


@each_dashboard
def test_it_uses_no_other_variables_than_it_has(source: Dashboard) -> None:
    text = json.dumps(dashboards.dashboard(source))
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))

    assert used == {"datasource", *source.variables}
    assert set(re.findall(r"\$__(\w+)", text)) <= {"rate_interval", "range", "all"}


@each_panel
def test_a_panel_asks_for_metrics_and_labels_that_are_exported(panel: Panel) -> None:
    for query in panel.queries:
        exported = [name for name in METRIC.findall(query.expr) if name.removesuffix("_bucket") in LABELS]
        assert exported == METRIC.findall(query.expr)
        for name, matchers in re.findall(r"(finetune_\w+)\{([^}]*)\}", query.expr):
            assert set(re.findall(r"(\w+)[!=]~?\"", matchers)) <= LABELS[name]
        if exported:
            named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
            assert named <= set.union(*(LABELS[name.removesuffix("_bucket")] for name in exported))


@each_panel
def test_a_panel_says_which_unit_it_has(panel: Panel) -> None:
    """A moment is shown as the time since then."""
    assert panel.about.unit is not Unit.MOMENT or panel.unit


@pytest.mark.parametrize("series", SERIES, ids=str)
def test_every_metric_has_a_panel(series: Any) -> None:
    queries = [query.expr for panel in PANELS for query in panel.queries]

    assert any(series.name in {name.removesuffix("_bucket") for name in METRIC.findall(expr)} for expr in queries)


@pytest.mark.parametrize("alert", alerts.load())
def test_every_alert_has_a_panel_that_shows_what_it_reads(alert: str) -> None:
    shown = [panel for panel in PANELS if alert in panel.alerts]
    reads = set(METRIC.findall(alerts.load()[alert]["rule"]["expr"]))

    assert shown
    assert all(reads & set(METRIC.findall(str(panel.queries))) for panel in shown)


def test_panels_name_no_other_alerts() -> None:
    assert {name for panel in PANELS for name in panel.alerts} == set(alerts.load())


def test_the_fleet_shows_the_operator_and_a_run_shows_its_agents() -> None:
    scopes = {each.name: each.scope for each in SERIES}

    def shown(source: Dashboard) -> set[Scope]:
        text = json.dumps(dashboards.dashboard(source)["panels"])
        return {scopes[name.removesuffix("_bucket")] for name in METRIC.findall(text)}

    fleet, run = map(shown, DASHBOARDS)
    assert Scope.OPERATOR in fleet
    assert run == {Scope.JOB, Scope.AGENT}
