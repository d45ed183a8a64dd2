"""The chart's PrometheusRule: what tools/alerts.py renders, with the same overrides. Needs no cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import Helm, RigError
from tools import alerts

CHART = Path(__file__).parents[2] / "charts" / "finetune-operator"
BASE = "https://git.example/finetune-operator/"
SOURCES = alerts.load()
FROM_AGENTS = {name for name, source in SOURCES.items() if "agent" in source["metrics"]}

Overrides = dict[str, dict[str, Any]]


def rules(helm: Helm, tmp_path: Path, overrides: Overrides, **settings: Any) -> dict[str, Any]:
    """By name, with the training pods scraped unless `settings` say otherwise."""
    given = {"enabled": True, "runbookUrlPrefix": BASE, "trainingPodsScraped": True, "alerts": overrides} | settings
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps({"metrics": {"prometheusRule": given}}))
    rendered = helm.render(CHART, "-f", values)["PrometheusRule/finetune-operator"]
    (group,) = rendered["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    return f"1{value}" if isinstance(value, str) else value + 1


EVERYTHING: Overrides = {
    name: {
        "for": "3s",
        "severity": "info",
        "labels": {"team": "ml"},
        "parameters": {key: changed(value) for key, value in source["parameters"].items()},
    }
    for name, source in SOURCES.items()
}
ZERO: Overrides = {
    name: {"for": "0s", "parameters": {key: 0 for key, value in source["parameters"].items() if value != str(value)}}
    for name, source in SOURCES.items()
}
LARGE: Overrides = {
    name: {"parameters": {key: 12_000_000 for key, value in source["parameters"].items() if value != str(value)}}
    for name, source in SOURCES.items()
}


@pytest.mark.parametrize(
    "overrides",
    [{}, EVERYTHING, ZERO, LARGE],
    ids=["as they come", "everything changed", "zero, which is a value too", "large numbers"],
)
def test_rules_are_those_of_the_files(helm: Helm, tmp_path: Path, overrides: Overrides) -> None:
    expected = {name: alerts.render(source, overrides.get(name), base=BASE) for name, source in SOURCES.items()}

    assert len(expected) > 15
    assert rules(helm, tmp_path, overrides) == expected


def test_alerts_on_training_pods_want_them_scraped(helm: Helm, tmp_path: Path) -> None:
    assert FROM_AGENTS
    assert set(rules(helm, tmp_path, {}, trainingPodsScraped=False)) == set(SOURCES) - FROM_AGENTS
    assert set(rules(helm, tmp_path, {})) == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_an_alert_can_be_left_out(helm: Helm, tmp_path: Path, name: str) -> None:
    assert set(rules(helm, tmp_path, {name: {"enabled": False}})) == set(SOURCES) - {name}


def test_labels_of_all_alerts_yield_to_those_of_one(helm: Helm, tmp_path: Path) -> None:
    found = rules(helm, tmp_path, {"FineTuneJobFailed": {"labels": {"team": "nlp"}}}, alertLabels={"team": "ml"})

    assert {name: rule["labels"]["team"] for name, rule in found.items()} == {
        name: "nlp" if name == "FineTuneJobFailed" else "ml" for name in SOURCES
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"FineTuneJobFail": {"enabled": False}}, "FineTuneJobFail: there is no such alert; there are: .*JobFailed"),
        ({"FineTuneJobFailed": {"parameters": {"rato": 1}}}, r"parameters\.rato: the alert has no such parameter"),
        ({"FineTuneJobFailed": {"severity": "urgent"}}, "value must be one of"),
        ({"FineTuneJobFailed": {"for": "soon"}}, "does not match pattern"),
    ],
)
def test_wrong_overrides_are_refused(helm: Helm, tmp_path: Path, overrides: Overrides, message: str) -> None:
    with pytest.raises(RigError, match=message):
        rules(helm, tmp_path, overrides)
