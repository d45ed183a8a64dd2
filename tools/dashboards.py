"""Grafana dashboards as JSON, from the records of tools/dashboard_panels.py: charts/finetune-operator/dashboards.

Written for Grafana's dashboard schema 39 (Grafana 10.3 and later, which migrate older versions when they load them).
The panels name no data source of an installation: a reader chooses one of type Prometheus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from finetune_api.series import JOB_INFO, Unit
from tools.dashboard_panels import ALERTS, DASHBOARDS, Dashboard, Panel

Json = dict[str, Any]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {Unit.RATIO: "percentunit", Unit.SECONDS: "s", Unit.BYTES: "bytes"}
"""Grafana's names of units. The others are plain numbers."""
COLUMNS = 24
ROW_HEIGHT = 1
DEFAULTS: dict[str, Json] = {
    "timeseries": {
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "none", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
        "percentChangeColorMode": "standard", "showPercentChange": False, "textMode": "auto", "wideLayout": True,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "table": {"cellHeight": "sm", "frameIndex": 0, "showHeader": True},
}  # fmt: skip
"""Options of each type of panel."""


def files() -> dict[str, str]:
    """Name and text of each file."""
    return {f"{each.uid}.json": json.dumps(dashboard(each), indent=1) + "\n" for each in DASHBOARDS}


def dashboard(source: Dashboard) -> Json:
    """What Grafana imports."""
    return {
        "uid": source.uid,
        "title": source.title,
        "description": source.about,
        "tags": ["finetune"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_alerts(source)]},
        "templating": {"list": list(_variables(source))},
        "links": [_other_dashboards()],
        "panels": list(_placed(source)),
    }


def _placed(source: Dashboard) -> Iterator[Json]:
    """Rows from top to bottom, their panels from left to right; ids in this order."""
    number, top = 0, 0
    for row in source.rows:
        number += 1
        place = {"x": 0, "y": top, "w": COLUMNS, "h": ROW_HEIGHT}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        left, top, below = 0, top + ROW_HEIGHT, top + ROW_HEIGHT
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top = 0, below
            number, below = number + 1, max(below, top + panel.height)
            yield _panel(panel, number, {"x": left, "y": top, "w": panel.width, "h": panel.height})
            left += panel.width
        top = below


def _panel(panel: Panel, number: int, place: Json) -> Json:
    defaults: Json = {"unit": panel.unit or UNITS.get(panel.about.unit, "none")}
    if panel.kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 10, "lineWidth": 1, "showPoints": "never", "spanNulls": False}
    made: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": " ".join([panel.about.text, *_about(panel)]),
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": DEFAULTS[panel.kind],
        "targets": [_target(panel, index) for index in range(len(panel.queries))],
    }
    if panel.kind == "table":
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
    return made


def _about(panel: Panel) -> list[str]:
    return [f"Alerts: {', '.join(panel.alerts)}."] if panel.alerts else []


def _target(panel: Panel, index: int) -> Json:
    query, over_time = panel.queries[index], panel.kind == "timeseries"
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": "table" if panel.kind == "table" else "time_series",
        "instant": not over_time,
        "range": over_time,
    }


def _variables(source: Dashboard) -> Iterator[Json]:
    """The data source, then a label of jobs each, among the values that the choices before it leave."""
    yield {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1,
        "multi": False, "includeAll": False,
    }  # fmt: skip
    for index, label in enumerate(source.variables):
        before = ",".join(f'{name}="${name}"' for name in source.variables[:index])
        query = f"label_values({JOB_INFO}{{{before}}}, {label})"
        every = {"current": {"text": "All", "value": "$__all"}, "allValue": ".*"} if source.several else {}
        yield {
            "name": label, "label": label.capitalize(), "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 1,
            "query": {"query": query, "refId": f"variable-{label}"},
            "multi": source.several, "includeAll": source.several, **every,
        }  # fmt: skip


def _alerts(source: Dashboard) -> Json:
    """Marks in all panels while an alert fires."""
    where = ",".join(f'{label}=~"${label}"' for label in source.variables)
    return {
        "name": "Firing alerts", "datasource": SOURCE, "enable": True, "iconColor": "red",
        "expr": f"{ALERTS},{where}}}", "titleFormat": "{{alertname}}", "textFormat": "{{namespace}}/{{name}}",
    }  # fmt: skip


def _other_dashboards() -> Json:
    return {
        "type": "dashboards", "title": "FineTuneJobs", "tags": ["finetune"], "asDropdown": False, "icon": "",
        "includeVars": True, "keepTime": True, "targetBlank": False, "tooltip": "",
    }  # fmt: skip
