"""What Helm makes of the chart, for each values file of charts/finetune-operator/ci: single values, whole snapshots,
and the same from Helm 3 as from Helm 4. Needs no cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.admin_policy import AdminPolicy, read
from finetune_operator import main
from tests.cluster.rig import Helm, RigError
from tests.cluster.rig.build import BINARIES
from tests.cluster.rig.helm import Objects
from tests.support import chart_snapshots as snapshots
from tests.support.chart_cases import ABSENT, CASES, CHART, GANGS, LEADER, NAME, NETWORK, RIGHTS, ROOT, Expected


def values(name: str) -> Path:
    return CHART / "ci" / f"{name}-values.yaml"


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> dict[str, Objects]:
    return {name: helm.render(CHART, "-f", values(name)) for name in CASES}


def found(objects: Objects, name: str, path: str) -> Any:
    at: Any = objects.get(name, ABSENT)
    if path.startswith("--"):
        args = [arg.partition("=") for arg in at["spec"]["template"]["spec"]["containers"][0]["args"]]
        given = [value for key, _, value in args if key == path]
        return ",".join(given) if given else None
    for key in path.split():
        if at == ABSENT:
            break
        at = at.get(key, ABSENT) if isinstance(at, dict) else at[int(key)]
    return at


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(name, each, id=f"{name}: {each[0]} {each[1]}")
        for name, each in [(n, e) for n in CASES for e in CASES[n]]
    ],
)
def test_what_values_make(rendered: dict[str, Objects], name: str, expected: Expected) -> None:
    where, path, value = expected

    assert found(rendered[name], where, path) == value


@pytest.mark.parametrize("name", CASES)
def test_the_whole_is_what_reviewers_have_seen(rendered: dict[str, Objects], name: str) -> None:
    found = snapshots.lines(rendered[name])
    shown = found if name == snapshots.DEFAULT else snapshots.difference(found, snapshots.read(snapshots.DEFAULT))

    assert shown == snapshots.read(name), "python -m tests.support.chart_snapshots writes it again"


def test_every_snapshot_is_of_a_values_file() -> None:
    assert {path.stem for path in snapshots.FOLDER.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_helm_3_renders_the_same(helm3: Helm, rendered: dict[str, Objects], name: str) -> None:
    assert helm3.render(CHART, "-f", values(name)) == rendered[name]


def test_the_readme_names_the_versions_of_helm() -> None:
    of_helm = [BINARIES[name].version.removeprefix("v").rpartition(".")[0] for name in ("helm", "helm3")]

    assert "render it with\nHelm {} and Helm {}, which".format(*of_helm) in (CHART / "README.md").read_text()


def test_helm_3_refuses_unknown_values_and_finds_nothing_to_complain_about(helm3: Helm) -> None:
    assert helm3("version", "--short").startswith("v3.")
    with pytest.raises(RigError, match=r"[Aa]dditional propert[a-z]+ '?replicaCount'? (is )?not allowed"):
        helm3("template", NAME, CHART, "--set", "replicaCount=3")
    assert "0 chart(s) failed" in helm3("lint", "--strict", CHART)


def test_every_values_file_is_in_the_table() -> None:
    assert {path.name.removesuffix("-values.yaml") for path in (CHART / "ci").iterdir()} == set(CASES)
    assert len(CASES) >= 12
    assert sum(map(len, CASES.values())) >= 120


@pytest.mark.parametrize("name", CASES)
def test_the_operator_takes_its_arguments(rendered: dict[str, Objects], name: str) -> None:
    (deployment,) = (each for each in rendered[name].values() if each["kind"] == "Deployment")
    (operator,) = deployment["spec"]["template"]["spec"]["containers"]
    args = main.parse([*operator["args"], f"--lease-namespace={NAME}"], {})

    assert args.leader_elect
    assert args.listen == f":{operator['ports'][0]['containerPort']}"
    assert args.namespace == (["team-a", "team-b"] if name == "namespaced" else [])


@pytest.mark.parametrize("name", CASES)
def test_selectors_select_the_operators_pods(rendered: dict[str, Objects], name: str) -> None:
    (deployment,) = (each for each in rendered[name].values() if each["kind"] == "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    (service,) = (each for each in rendered[name].values() if each["kind"] == "Service")
    selectors = [deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]]
    for kind, path in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        selectors += [each["spec"][path]["matchLabels"] for each in rendered[name].values() if each["kind"] == kind]

    assert all(selector.items() <= labels for selector in selectors)
    assert all(each["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
               for each in rendered[name].values() if each["kind"] == "ServiceMonitor")  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rights_are_the_operators_files_and_no_more(rendered: dict[str, Objects], name: str) -> None:
    for each in rendered[name].values():
        if each["kind"] not in ("Role", "ClusterRole") or each["metadata"]["name"].startswith("finetunejobs-"):
            continue
        for rule in each["rules"]:
            asked = rule | ({"resourceNames": [NAME]} if "resourceNames" in rule else {})
            assert asked in [*RIGHTS, *GANGS, *NETWORK, *LEADER]
            assert not {"secrets", "pods/exec"} & set(rule["resources"])


def test_namespaces_leave_nothing_that_wants_rights_on_the_cluster(rendered: dict[str, Objects]) -> None:
    assert [key for key, each in rendered["namespaced"].items() if "namespace" not in each["metadata"]] == []


def test_the_crd_is_rendered_byte_by_byte(helm: Helm) -> None:
    source = (ROOT / "crds" / "finetunejobs.finetune.dev.yaml").read_text()
    bare = helm("template", NAME, CHART, "--show-only", "templates/crd.yaml", "--set", "crds.keep=false")
    kept = helm("template", NAME, CHART, "--show-only", "templates/crd.yaml")

    assert bare.partition("templates/crd.yaml\n")[2].rstrip("\n") == source.rstrip("\n")
    annotation = "  annotations:\n    helm.sh/resource-policy: keep\n"
    assert kept.count(annotation) == 1
    assert kept.replace(annotation, "") == bare


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("replicaCount=3", "additional properties 'replicaCount' not allowed"),
        ("operator.image.name=x", "additional properties 'name' not allowed"),
        ("operator.replicas=0", "minimum"),
        ("operator.replicas=two", "want integer"),
        ("policy.maxNode=1", "additional properties 'maxNode' not allowed"),
        ("policy.uriPrefixes[0]=corp", "does not match pattern"),
        ("operator.logLevel=trace", "value must be one of"),
        ("operator.image.digest=latest", "does not match pattern"),
        ("operator.tolerations[0].kee=x", "additional properties 'kee' not allowed"),
        ("operator.env[0].value=x", "missing property 'name'"),
        ("namespaces[0]=Team_A", "does not match pattern"),
        ("namespaces=team-a", "want array"),
        ("metrics.podMonitor.interval=soon", "does not match pattern"),
        ("metrics.prometheusRule.alerts.FineTuneJobStalled.treshold=1", "additional properties 'treshold' not allowed"),
        ("crds.keep=yes", "want boolean"),
        ("modelCache.pvc=models", "additional properties 'pvc' not allowed"),
        ("policy.modelCache.claim=models", "additional properties 'modelCache' not allowed"),
        ("modelCache.create.nodePath=models", "does not match pattern"),
        (
            "modelCache.create.enabled=true",
            "modelCache.create.enabled needs modelCache.claim and modelCache.namespaces",
        ),
    ],
)
def test_wrong_values_are_refused(helm: Helm, setting: str, message: str) -> None:
    with pytest.raises(RigError, match=message):
        helm("template", NAME, CHART, "--set", setting)


def test_the_operator_reads_the_policy_as_it_is_written_in_the_values(rendered: dict[str, Objects]) -> None:
    given = yaml.safe_load(values("policy").read_text())["policy"]
    given.pop("admission")

    assert read(rendered["policy"][f"ConfigMap/{NAME}-policy"]["data"]["policy.json"]) == AdminPolicy(**given)


def test_the_operator_reads_each_namespaces_cache_of_models(rendered: dict[str, Objects]) -> None:
    policy = read(rendered["model-cache"][f"ConfigMap/{NAME}-policy"]["data"]["policy.json"])
    caches = {name: policy.of(name).model_cache for name in ("team-a", "team-b", "team-c")}

    assert {name: (cache.claim, cache.size_gib) for name, cache in caches.items()} == {
        "team-a": ("models", 800), "team-b": ("fast", 100), "team-c": ("", 0),
    }  # fmt: skip
    assert policy.of("team-b").max_nodes == 2


def test_an_older_kubernetes_is_refused(helm: Helm) -> None:
    with pytest.raises(RigError, match=r"incompatible with Kubernetes v1\.29\.0"):
        helm("template", NAME, CHART, "--kube-version", "1.29.0")


@pytest.mark.parametrize("name", CASES)
def test_helm_finds_nothing_to_complain_about(helm: Helm, name: str) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, "-f", values(name))


def test_the_packed_chart_renders_the_same(helm: Helm, tmp_path: Path, rendered: dict[str, Objects]) -> None:
    helm("package", CHART, "-d", tmp_path)
    (packed,) = tmp_path.glob("*.tgz")

    assert helm.render(packed, "-f", values("monitoring")) == rendered["monitoring"]


def test_a_release_of_another_name_has_its_own_objects(helm: Helm) -> None:
    other = helm.render(CHART, "-f", values("namespaced"), release="second")

    assert found(other, "Deployment/second-finetune-operator", "--lease-name") == "second-finetune-operator"
    assert "Role/team-a/finetune-operator" in other  # the same, so that Helm refuses to share a namespace
