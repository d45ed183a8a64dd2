"""Alert rules ask only for what is exported, can be changed where they say so, and have their cases and runbooks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.failures import Reason
from finetune_api.status import FailureClass, Phase
from finetune_trainer.agent.serve import PHASES
from tests.support import exported_series
from tests.support.alert_cases import FOLDER, cases
from tests.support.documents import ROOT
from tests.support.exported_series import label_sets
from tools import alerts

RULES = alerts.load()
each_alert = pytest.mark.parametrize("alert", RULES)
MATCHERS = re.compile(r"(finetune_\w+)(?:\{([^}]*)\})?")
Series = dict[str, set[frozenset[str]]]


@pytest.fixture(scope="module")
def of_operator() -> Series:
    return label_sets(exported_series.of_operator())


@pytest.fixture(scope="module")
def of_agent(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return label_sets(exported_series.of_agent(tmp_path_factory.mktemp("run")))


def asked(alert: str) -> list[tuple[str, dict[str, list[str]]]]:
    """Each metric of an expression, with the alternatives of each label that it is matched by."""
    found = []
    for name, matchers in MATCHERS.findall(RULES[alert]["rule"]["expr"]):
        labels = dict(re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers))
        found.append((name, {label: values.split("|") for label, values in labels.items()}))
    return found


@each_alert
def test_it_asks_only_for_metrics_and_labels_that_are_exported(
    alert: str, of_operator: Series, of_agent: Series
) -> None:
    assert asked(alert)
    for name, matchers in asked(alert):
        sets = of_operator.get(name) or of_agent.get(name)
        assert sets, f"nobody exports {name}"
        assert all(set(matchers) <= labels for labels in sets), (name, matchers)


@each_alert
def test_it_says_whose_metrics_it_cannot_do_without(alert: str, of_operator: Series, of_agent: Series) -> None:
    """A metric that only excuses a job (`unless on`) may be missing."""
    expr = re.sub(r"unless on [^\n]*", "", RULES[alert]["rule"]["expr"])
    needed = {name for name, _ in MATCHERS.findall(expr)}
    sources = {"operator": needed & set(of_operator), "agent": needed & set(of_agent)}
    assert set(RULES[alert]["metrics"]) == {source for source, names in sources.items() if names}


VALUES: dict[tuple[str, str], set[str]] = {
    ("finetune_job_phase", "phase"): {*Phase},
    ("finetune_agent_phase", "phase"): {*PHASES},
    ("finetune_job_deadline_seconds", "deadline"): {"startup", "active", "stall"},
    ("finetune_job_restarts", "counted"): {"true", "false"},
    ("finetune_job_last_failure_timestamp_seconds", "class"): {*FailureClass},
    ("finetune_job_last_failure_timestamp_seconds", "reason"): {*Reason},
    ("finetune_job_info", "method"): {"command"},
    ("finetune_job_guard_state", "state"): {"passed", "violated", "inconclusive"},
    ("finetune_operator_reconciles_total", "result"): {"done", "error"},
    ("finetune_operator_api_requests_total", "code"): {"429"},
}


@each_alert
def test_it_compares_labels_with_values_that_they_have(alert: str) -> None:
    for name, matchers in asked(alert):
        for label, values in matchers.items():
            assert set(values) <= VALUES[name, label], (name, label)


@each_alert
def test_it_has_what_every_rule_has(alert: str) -> None:
    source = RULES[alert]
    assert set(source) == {"metrics", "parameters", "rule"}
    rule = source["rule"]
    assert (rule["alert"], set(rule)) == (alert, {"alert", "expr", "for", "labels", "annotations"})
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{alert.lower()}"
    placeholders = set(re.findall(r"\$\{(\w+)\}", rule["expr"] + "".join(rule["annotations"].values())))
    assert set(source["parameters"]) <= placeholders <= {*source["parameters"], "for"}
    assert "${" not in str(alerts.render(source))


@each_alert
def test_its_text_uses_only_labels_that_it_has(alert: str) -> None:
    text = "".join(RULES[alert]["rule"]["annotations"].values())
    for case in cases():
        if case.alert == alert and isinstance(case.fires, dict):
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= set(case.fires), case.case


@each_alert
def test_it_has_cases_that_fire_and_are_silent_with_its_defaults_and_with_others(alert: str) -> None:
    own = [case for case in cases() if case.alert == alert]
    assert {case.firing for case in own if not case.override} == {True, False}
    changed = {name for case in own for name in ({*case.override} | {*case.override.get("parameters", {})})}
    assert changed >= {*RULES[alert]["parameters"]} or not RULES[alert]["parameters"]
    assert changed


def test_every_file_of_cases_is_of_an_alert() -> None:
    assert {path.stem for path in FOLDER.glob("*")} == set(RULES)
    for path in FOLDER.glob("*.yaml"):
        names = [case["case"] for case in yaml.safe_load(path.read_text())]
        assert len(names) == len(set(names)), path.name


PAGE = (ROOT / "docs" / "alerts.md").read_text()
INTRODUCTION = PAGE.partition("\n## ")[0]


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    assert sorted(re.findall(r"^## (.+)$", PAGE, re.MULTILINE)) == sorted(RULES)
    rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \| ([\w ]+) \|.*?(\(\*agents\*\) )?\|$", PAGE, re.MULTILINE)
    told = {
        name: (anchor, severity, "0m" if after == "at once" else after, bool(agents))
        for name, anchor, severity, after, agents in rows
    }
    assert told == {
        name: (name.lower(), rule["rule"]["labels"]["severity"], rule["rule"]["for"], "agent" in rule["metrics"])
        for name, rule in RULES.items()
    }


@each_alert
def test_its_section_says_what_it_means_what_it_costs_how_to_find_out_and_what_to_do(alert: str) -> None:
    section = PAGE.partition(f"## {alert}\n")[2].partition("\n## ")[0]
    parts = re.findall(r"^- \*\*(\w+)\*\*: (.+)", section, re.MULTILINE)
    assert [name for name, _ in parts] == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    for parameter in RULES[alert]["parameters"]:
        assert f"`{parameter}`" in section + INTRODUCTION, "its threshold can be changed, and nobody knows"


RULE = {
    "metrics": ["operator"],
    "parameters": {"ratio": 0.5},
    "rule": {
        "alert": "A",
        "expr": "a > ${ratio}",
        "for": "5m",
        "labels": {"severity": "warning"},
        "annotations": {"summary": "{{ $labels.a }} for ${for}", "runbook_url": "docs/alerts.md#a"},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("override", "then"),
    [
        ({}, ("a > 0.5", "5m", {"severity": "warning"}, "{{ $labels.a }} for 5m")),
        ({"parameters": {"ratio": 0}}, ("a > 0", "5m", {"severity": "warning"}, "{{ $labels.a }} for 5m")),
        ({"for": "0m"}, ("a > 0.5", "0m", {"severity": "warning"}, "{{ $labels.a }} for 0m")),
        (
            {"severity": "info", "labels": {"team": "ml"}},
            ("a > 0.5", "5m", {"severity": "info", "team": "ml"}, "{{ $labels.a }} for 5m"),
        ),
    ],
)
def test_overrides_replace_what_they_name(override: dict[str, Any], then: tuple[Any, ...]) -> None:
    rule = alerts.render(RULE, override, base="https://example.org/")
    assert (rule["expr"], rule["for"], rule["labels"], rule["annotations"]["summary"]) == then
    assert rule["annotations"]["runbook_url"] == "https://example.org/docs/alerts.md#a"


@pytest.mark.parametrize("override", [{"parameters": {"raito": 1}}, {"threshold": 1}])
def test_an_override_of_what_does_not_exist_is_an_error(override: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"A has no (raito|threshold)"):
        alerts.render(RULE, override)


def test_the_rules_are_printed_as_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert Path(alerts.__file__).name == "alerts.py"
    alerts.main(["--runbooks", "https://example.org/"])
    (group,) = yaml.safe_load(capsys.readouterr().out)["groups"]
    assert [rule["alert"] for rule in group["rules"]] == sorted(RULES)
    assert all(rule["annotations"]["runbook_url"].startswith("https://example.org/docs/") for rule in group["rules"])
