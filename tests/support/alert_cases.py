"""What each alert has to do, and the promtool test that asks for it.

A file of tests/unit/alerts lists the cases of one alert:

    case      what is the matter
    series    the input, a sample each minute. `JOB` stands for a job's labels; a bare number is repeated for ever
    at        when the alerts are looked at, in minutes: 20m
    override  of the alert, as the chart takes it (see charts/finetune-operator/rules/README.md)
    fires     labels of the firing alert, without its name and severity; false: it is silent
    also      other alerts that fire with it, with their labels. Any that are not listed must be silent
    healthy   false: without an operator that runs and leads

Every case is played against all rules, so a case that fires also shows that nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tools import alerts

FOLDER = Path(__file__).parents[1] / "unit" / "alerts"
JOB = 'namespace="ml",name="a"'
HEALTHY = {
    'finetune_operator_build_info{job="operator",version="1"}': 1,
    'finetune_operator_leader{job="operator",instance="x"}': 1,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    alert: str
    case: str
    at: str
    series: dict[str, str | float]
    fires: dict[str, str] | bool
    override: dict[str, Any] = field(default_factory=dict)
    also: dict[str, dict[str, str]] = field(default_factory=dict)
    healthy: bool = True
    description: str = ""

    @property
    def firing(self) -> bool:
        return self.fires is not False

    def rules(self) -> list[alerts.Rule]:
        """All of them, as the chart renders them with the override of this one."""
        overrides = {self.alert: self.override}
        return [
            alerts.render(source, overrides.get(name))
            for name, source in _sources().items()
            if overrides.get(name, {}).get("enabled", True)
        ]

    def test(self, rules: Path) -> dict[str, Any]:
        """A promtool test file for the rendered rules in that file."""
        severity = {rule["alert"]: rule["labels"]["severity"] for rule in self.rules()}
        expected = ({self.alert: self.fires} if isinstance(self.fires, dict) else {}) | self.also
        samples = [
            {"labels": _series("ALERTS", alertname=name, alertstate="firing", severity=severity[name], **labels)}
            for name, labels in expected.items()
        ]
        given = (HEALTHY if self.healthy else {}) | self.series
        return {
            "rule_files": [str(rules)],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "name": f"{self.alert}: {self.case}",
                    "interval": "1m",
                    "input_series": [self._input(name, value) for name, value in given.items()],
                    "promql_expr_test": [
                        {
                            "expr": 'ALERTS{alertstate="firing"}',
                            "eval_time": self.at,
                            "exp_samples": [{**sample, "value": 1} for sample in samples],
                        }
                    ],
                    "alert_rule_test": self._texts(severity),
                }
            ],
        }

    def _input(self, name: str, value: str | float) -> dict[str, str]:
        values = f"{value}x{int(self.at.removesuffix('m')) + 1}" if isinstance(value, int | float) else value
        return {"series": name.replace("JOB", JOB), "values": values}

    def _texts(self, severity: dict[str, str]) -> list[dict[str, Any]]:
        if not self.description or not isinstance(self.fires, dict):
            return []
        (rule,) = (rule for rule in self.rules() if rule["alert"] == self.alert)
        summary = rule["annotations"]["summary"]
        for name, value in self.fires.items():
            summary = summary.replace(f"{{{{ $labels.{name} }}}}", value)
        alert = {
            "exp_labels": {**self.fires, "severity": severity[self.alert]},
            "exp_annotations": rule["annotations"] | {"summary": summary, "description": self.description},
        }
        return [{"alertname": self.alert, "eval_time": self.at, "exp_alerts": [alert]}]


@cache
def cases() -> tuple[Case, ...]:
    return tuple(
        Case(alert=path.stem, **case)
        for path in sorted(FOLDER.glob("*.yaml"))
        for case in yaml.safe_load(path.read_text())
    )


@cache
def _sources() -> dict[str, alerts.Rule]:
    return alerts.load()


def _series(metric: str, **labels: str) -> str:
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
