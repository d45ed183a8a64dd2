"""What the chart installs and what the operator creates, against the schemas of each Kubernetes version that the chart
takes. Validated, not run: the tests run on the version of the rig. Needs no cluster."""

from __future__ import annotations

import copy
import importlib.resources
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cluster.rig import Helm
from tests.cluster.rig.build import KUBERNETES

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
SERVED_ELSEWHERE = ("monitoring.coreos.com/", "apiextensions.k8s.io/")
"""The Prometheus Operator's kinds, and the CRD, which the API server itself judges in every integration test."""


def minor(version: str) -> int:
    return int(version.split(".")[1])


OLDEST = minor(re.sub("[^0-9.]", "", yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]))
NEWEST = max(minor(each.name) for each in (importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema")
             .iterdir() if re.match(r"v?1\.\d+", each.name))  # fmt: skip
POD_GROUPS = 36
"""From this minor version on Kubernetes has PodGroups of its own. The operator names one only where they are served."""
VERSIONS = [f"1.{number}" for number in range(OLDEST, NEWEST + 1)]


def shape(node: Any) -> Any:
    """Keys and types, which schemas judge; names, numbers and texts do not matter."""
    if isinstance(node, dict):
        return {key: shape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [shape(each) for each in node]
    return type(node).__name__


def different(objects: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps([each["kind"], shape(each)]): each for each in objects}.values())


@pytest.fixture(scope="module")
def installed(helm: Helm) -> list[dict[str, Any]]:
    """Of all values files, each form of an object once."""
    files = sorted((CHART / "ci").iterdir())
    found = (each for file in files for each in helm.render(CHART, "-f", file).values())
    return different(each for each in found if not each["apiVersion"].startswith(SERVED_ELSEWHERE))


@pytest.fixture(scope="module")
def created() -> list[dict[str, Any]]:
    """What the operator makes of a job: the golden objects of tests/unit/test_operator_golden_objects.py."""
    files = sorted((ROOT / "tests" / "data" / "objects").glob("*.created.yaml"))
    found = (each for file in files for each in yaml.safe_load(file.read_text())["created"])
    return different(each for each in found if each["kind"] in ("Job", "Service"))


def complaints(objects: list[dict[str, Any]], version: str) -> list[str]:
    told = []
    for each in objects:
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            told.append(f"{each['kind']}/{each['metadata']['name']}: {error.message}")
    return told


@pytest.mark.parametrize("version", VERSIONS)
def test_the_chart_is_valid_on(version: str, installed: list[dict[str, Any]]) -> None:
    assert len(installed) > 12
    assert complaints(installed, version) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_operator_creates_is_valid_on(version: str, created: list[dict[str, Any]]) -> None:
    objects = copy.deepcopy(created)
    for each in objects if minor(version) < POD_GROUPS else ():
        each["spec"].get("template", {"spec": {}})["spec"].pop("schedulingGroup", None)

    assert {each["kind"] for each in objects} == {"Job", "Service"}
    assert complaints(objects, version) == []


def test_a_field_that_no_version_has_is_found(created: list[dict[str, Any]]) -> None:
    wrong = [{**each, "spec": {**each["spec"], "teleport": True}} for each in created]

    assert len(complaints(wrong, VERSIONS[0])) == len(wrong)


def test_the_documents_say_what_was_run_and_what_was_validated() -> None:
    page = (CHART / "README.md").read_text()

    assert f"the tests run\non {KUBERNETES.removeprefix('v').rpartition('.')[0]}" in page
    assert f"validated against the schemas of {VERSIONS[0]} to {VERSIONS[-1]}" in page
