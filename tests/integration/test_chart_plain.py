"""operator/install.yaml, for those without Helm, is the chart as Helm renders it. Needs no cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.rig import Helm
from tools import install_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    made = list(yaml.safe_load_all(install_manifest.FILE.read_text()))
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in made}


def test_it_is_what_the_chart_renders(helm: Helm) -> None:
    assert install_manifest.FILE.read_text() == install_manifest.rendered(helm.binary), "run: make generate"


@pytest.mark.parametrize(
    ("name", "file"),
    [("ClusterRole/finetune-operator", "rbac.yaml"), ("Role/finetune-operator-leader", "rbac-leader.yaml")],
)
def test_it_grants_what_the_tests_run_with(objects: dict[str, dict[str, Any]], name: str, file: str) -> None:
    assert objects[name]["rules"] == yaml.safe_load((ROOT / "operator" / file).read_text())["rules"]


def test_it_needs_no_other_file_than_the_crd(objects: dict[str, dict[str, Any]]) -> None:
    bound = {f"{each['roleRef']['kind']}/{each['roleRef']['name']}" for each in objects.values() if "roleRef" in each}

    assert bound <= set(objects)
    assert {each["metadata"].get("namespace", "finetune-operator") for each in objects.values()} == {
        "finetune-operator"
    }


def test_nothing_in_it_claims_to_be_helms() -> None:
    text = install_manifest.FILE.read_text()

    assert not [label for label in install_manifest.OF_HELM if label in text]
