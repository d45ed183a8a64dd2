"""The chart's alert rules as one file, for promtool or for a Prometheus without its operator. Their format is described
in charts/finetune-operator/rules/README.md.

    python tools/alerts.py > rules.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).resolve().parents[1] / "charts" / "finetune-operator" / "rules"
Rule = dict[str, Any]


def load() -> dict[str, Rule]:
    """All files of rules, by the alert's name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yaml"))}


def render(source: Rule, override: Mapping[str, Any] | None = None, *, base: str = "") -> Rule:
    """A plain Prometheus alerting rule. ValueError for an override or a parameter that does not exist."""
    override, rule = override or {}, source["rule"]
    given = override.get("parameters", {})
    unknown = {*override} - {"enabled", "for", "severity", "labels", "parameters"} | {*given} - {*source["parameters"]}
    if unknown:
        raise ValueError(f"{rule['alert']} has no {', '.join(sorted(unknown))}")
    values = source["parameters"] | given | {"for": override.get("for", rule["for"])}
    severity = override.get("severity", rule["labels"]["severity"])
    return rule | {
        "expr": _filled(rule["expr"], values),
        "for": values["for"],
        "labels": rule["labels"] | override.get("labels", {}) | {"severity": severity},
        "annotations": {
            name: (base if name == "runbook_url" else "") + _filled(text, values)
            for name, text in rule["annotations"].items()
        },
    }


def group(rules: Iterable[Rule]) -> Rule:
    """The content of a file of rules."""
    return {"groups": [{"name": "finetune-operator", "rules": list(rules)}]}


def _filled(text: str, values: Mapping[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", str(value))
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prints all alert rules with their defaults.")
    parser.add_argument("--runbooks", default="", help="URL that docs/alerts.md is below, with a slash at its end")
    base = parser.parse_args(arguments).runbooks
    yaml.safe_dump(group(render(rule, base=base) for rule in load().values()), sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
