"""What the chart renders for each values file, as text that a reviewer can read: one line for each leaf of each object.

    tests/data/chart/default.txt     every line of the default values
    tests/data/chart/NAME.txt        for ci/NAME-values.yaml only what differs: `+` is added, `-` is missing

What a template copies from a file of the repository stands as that file's name, so that a change of the CRD, an alert
or a dashboard changes no snapshot; other tests compare these copies. `python -m tests.support.chart_snapshots` writes
the snapshots again, with Helm 4."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.rig.helm import Helm, Objects
from tests.support.chart_cases import CASES, CHART, GANGS, LEADER, NETWORK, RIGHTS, ROOT

FOLDER = ROOT / "tests" / "data" / "chart"
DEFAULT = "default"
VERSIONED = frozenset({"helm.sh/chart", "app.kubernetes.io/version"})
Lines = list[str]


def snapshot(name: str) -> Path:
    return FOLDER / f"{name}.txt"


def lines(objects: Objects) -> Lines:
    """One line for each leaf, sorted: `Kind/name path.to.leaf: value as JSON`."""
    return sorted(f"{key} {leaf}" for key, each in objects.items() for leaf in _leaves(_named(each)))


def difference(found: Lines, default: Lines) -> Lines:
    """The content of a snapshot other than the default's."""
    return [f"- {line}" for line in sorted({*default} - {*found})] + [
        f"+ {line}" for line in sorted({*found} - {*default})
    ]


def read(name: str) -> Lines:
    return snapshot(name).read_text().splitlines()


def _leaves(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{json.dumps(key) if '.' in key else key}".lstrip("."))
    elif isinstance(node, list) and node:
        for number, value in enumerate(node):
            yield from _leaves(value, f"{path}[{number}]")
    else:
        yield f"{path}: {json.dumps(node, ensure_ascii=False)}"


def _named(each: dict[str, Any]) -> dict[str, Any]:
    """With the names of files in place of what is copied from them."""
    kind, shown = each["kind"], {**each, "metadata": _unversioned(each["metadata"])}
    if kind == "CustomResourceDefinition":
        shown["spec"] = _same(each["spec"], yaml.safe_load((CHART / "files" / "crd.yaml").read_text())["spec"], "CRD")
    elif kind in ("Role", "ClusterRole"):
        shown["rules"] = _rights(each["rules"])
    elif kind == "PrometheusRule":
        (group,) = each["spec"]["groups"]
        shown["spec"] = {"groups": [{"name": group["name"], "rules": "of rules/"}]}
    elif kind == "ValidatingAdmissionPolicy":
        copied = yaml.safe_load((CHART / "files" / "admission.yaml").read_text())
        variables = _same(each["spec"]["variables"], copied, "files/admission.yaml")
        shown["spec"] = each["spec"] | {"variables": variables}
    elif kind == "ConfigMap":
        shown["data"] = {name: _dashboard(name, text) for name, text in each["data"].items()}
    return shown


def _unversioned(meta: dict[str, Any]) -> dict[str, Any]:
    """Without the two labels that change with every release."""
    labels = {key: value for key, value in meta.get("labels", {}).items() if key not in VERSIONED}
    return {**meta, "labels": labels} if labels else meta


def _same(found: Any, copied: Any, name: str) -> Any:
    return f"of {name}" if found == copied else found


def _rights(rules: list[dict[str, Any]]) -> list[Any]:
    """Rules in a row that are a whole file become its name."""
    shown: list[Any] = list(rules)
    for name, own in (("rbac", RIGHTS), ("rbac-gang", GANGS), ("rbac-network", NETWORK), ("rbac-leader", LEADER)):
        for start in range(len(shown) - len(own) + 1):
            if shown[start : start + len(own)] == own:
                shown[start : start + len(own)] = [f"of files/{name}.yaml"]
    return shown


def _dashboard(name: str, text: str) -> str:
    file = CHART / "dashboards" / name
    return f"of dashboards/{name}" if file.exists() and file.read_text().strip() == text else text


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        helm = Helm.at(Path(home))
        found = {name: lines(helm.render(CHART, "-f", CHART / "ci" / f"{name}-values.yaml")) for name in CASES}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, own in found.items():
        text = own if name == DEFAULT else difference(own, found[DEFAULT])
        snapshot(name).write_text("".join(f"{line}\n" for line in text))
        print(f"wrote {snapshot(name).relative_to(ROOT)}, {len(text)} lines")


if __name__ == "__main__":
    main()
