"""The chart without Helm: its generated files are current, its values strict and used, its rights the operator's own.

What it renders and what an API server says: tests/integration/test_chart_renders.py and test_chart_installs.py."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import names
from tools import chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
METADATA = yaml.safe_load((CHART / "Chart.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RIGHTS = [
    yaml.safe_load((CHART / "files" / f"{name}.yaml").read_text())
    for name in ("rbac", "rbac-leader", "rbac-gang", "rbac-network")
]


@pytest.mark.parametrize(("path", "text"), [pytest.param(*each, id=each[0].name) for each in chart.generated().items()])
def test_generated_files_are_current(path: Path, text: str) -> None:
    assert path.read_text() == text, "run: make generate"


def values_of(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of all leaves; a mapping with free keys is one."""
    for key, child in schema["properties"].items():
        here = f"{path}{key}"
        if "properties" in child:
            yield from values_of(child, f"{here}.")
        else:
            yield here


def used() -> set[str]:
    templates = "".join(file.read_text() for file in sorted((CHART / "templates").rglob("*.*")))
    return set(re.findall(r"\.Values\.([A-Za-z0-9_.]+)", templates))


def test_every_value_that_a_template_uses_is_in_the_schema() -> None:
    leaves = list(values_of(SCHEMA))
    branches = {leaf[: match.start()] for leaf in leaves for match in re.finditer(r"\.", leaf)}

    assert used() - set(leaves) - branches == set()


WHOLE = {
    "operator.image": {"repository", "tag", "digest"},
    "trainer.image": {"repository", "tag", "digest"},
    "operator.resources": {"requests", "limits"},
    "policy": {path.removeprefix("policy.") for path in values_of(SCHEMA) if path.startswith("policy.")},
}
"""Mappings that a template passes on, and the keys that are used there."""


def test_every_value_of_the_schema_is_used_by_a_template() -> None:
    passed_on = {f"{path}.{key}" for path, keys in WHOLE.items() if path in used() for key in keys}

    assert set(values_of(SCHEMA)) - used() - passed_on == {"global"}


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, list):
        for each in schema:
            yield from objects(each, path)
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield path, schema
            for key, child in schema["properties"].items():
                yield from objects(child, f"{path}.{key}")
        for key in schema.keys() - {"properties", "default"}:
            yield from objects(schema[key], path)


def test_no_part_of_the_schema_takes_unknown_keys() -> None:
    found = dict(objects(SCHEMA))

    assert len(found) > 20
    assert [path for path, schema in found.items() if schema.get("additionalProperties") is not False] == []


def test_every_value_is_described() -> None:
    table = chart.table().splitlines()[2:]

    assert [row for row in table if row.endswith("|  |")] == []
    assert len(table) == len(set(values_of(SCHEMA)) - {"global"})


def test_versions_are_the_projects() -> None:
    assert METADATA["appVersion"] == METADATA["version"] == PROJECT["version"]


def test_the_license_is_apache_2_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text()

    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == METADATA["annotations"]["artifacthub.io/license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]


def test_the_chart_declares_the_crd() -> None:
    (declared,) = yaml.safe_load(METADATA["annotations"]["artifacthub.io/crds"])

    assert declared["kind"] == names.KIND
    assert declared["version"] == names.VERSION
    assert declared["name"] == f"{names.PLURAL}.{names.GROUP}"


@pytest.mark.parametrize("role", RIGHTS, ids=lambda role: role["metadata"]["name"])
def test_no_rights_on_secrets_pods_exec_or_other_peoples_rights(role: dict[str, Any]) -> None:
    resources = {name for rule in role["rules"] for name in rule["resources"]}
    verbs = {verb for rule in role["rules"] for verb in rule["verbs"]}

    assert not resources & {"secrets", "pods/exec", "pods/attach", "serviceaccounts", "serviceaccounts/token", "*"}
    assert not verbs & {"*", "escalate", "bind", "impersonate"}
    assert not {group for rule in role["rules"] for group in rule["apiGroups"]} & {"*", "rbac.authorization.k8s.io"}
