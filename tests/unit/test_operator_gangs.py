"""Which way a gang is scheduled, what its pods and its group say, and when the group is made."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.status import Phase
from finetune_operator.decide import decide
from finetune_operator.gangs import GANGS, Gang, known_to
from finetune_operator.kube.client import NotFound
from finetune_operator.kube.resources import Raw
from finetune_operator.objects import attempt_job
from finetune_operator.state.cluster_features import ClusterFeatures, discover_features
from finetune_operator.state.status import find
from tests.support.operator_objects import DEFAULTS, NOW, child, job, seen, spec, status

ROOT = Path(__file__).parents[2]
ALL = ClusterFeatures(groups={name: gang.group.kinds[0] for name, gang in GANGS.items() if gang.group})
PENDING = status(Phase.Pending)


@pytest.mark.parametrize(
    ("scheduler", "gang"),
    [
        (None, "native"),
        ("default-scheduler", "native"),
        ("volcano", "volcano"),
        ("coscheduling", "coscheduling"),
        ("scheduler-plugins-scheduler", "coscheduling"),
        ("yunikorn", "yunikorn"),
        ("kai-scheduler", "kai"),
        ("my-scheduler", None),
    ],
)
def test_the_scheduler_chooses(scheduler: str | None, gang: str | None) -> None:
    found = known_to(spec(pod={"scheduler_name": scheduler}))
    assert (found.name if found else None) == gang


MARKS: list[tuple[str, list[str], Any]] = [
    ("native", ["spec", "schedulingGroup"], {"podGroupName": "a-1"}),
    ("volcano", ["metadata", "annotations", "scheduling.k8s.io/group-name"], "a-1"),
    ("coscheduling", ["metadata", "labels", "scheduling.x-k8s.io/pod-group"], "a-1"),
    ("yunikorn", ["metadata", "annotations", "yunikorn.apache.org/task-group-name"], "workers"),
    ("yunikorn", ["metadata", "annotations", "yunikorn.apache.org/app-id"], "ml.a-1"),
    ("yunikorn", ["metadata", "annotations", "yunikorn.apache.org/schedulingPolicyParameters"],
     "placeholderTimeoutInSeconds=1800 gangSchedulingStyle=Hard"),
    ("kai", ["metadata", "annotations", "pod-group-name"], "a-1"),
    ("kai", ["metadata", "annotations", "kai.scheduler/skip-podgrouper"], "true"),
    ("kai", ["metadata", "labels", "kai.scheduler/queue"], "default-queue"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "says"), MARKS)
def test_pods_name_their_group_and_the_job_its_way(name: str, path: list[str], says: Any) -> None:
    made = attempt_job(job(), spec(), attempt=1, defaults=DEFAULTS, gang=GANGS[name])
    found: Any = made["spec"]["template"]
    for step in path:
        found = found[step]
    assert found == says
    assert made["metadata"]["annotations"]["finetune.dev/gang"] == name


def test_a_task_group_of_yunikorn_asks_for_what_its_pods_ask_for() -> None:
    resources = {"limits": {"nvidia.com/gpu": "8", "memory": "64Gi"}, "requests": {"cpu": "4", "memory": "32Gi"}}
    pods = {"node_selector": {"gpu": "h200"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    given = spec(resources=resources, pod=pods, nodes={"min": 3, "max": 4})
    made = attempt_job(job(), given, attempt=2, defaults=DEFAULTS, gang=GANGS["yunikorn"])
    template = made["spec"]["template"]
    (group,) = json.loads(template["metadata"]["annotations"]["yunikorn.apache.org/task-groups"])
    assert group == {
        "name": template["metadata"]["annotations"]["yunikorn.apache.org/task-group-name"],
        "minMember": 3,
        "minResource": {"nvidia.com/gpu": "8", "memory": "32Gi", "cpu": "4"},
        "nodeSelector": {"gpu": "h200"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    }


def test_a_scheduler_without_a_group_object_needs_nothing_of_the_cluster() -> None:
    given = spec(pod={"scheduler_name": "yunikorn"})
    decision = decide(seen(job(), features=ClusterFeatures(), spec=given), NOW)
    told = find(decision.status, "GangScheduled")
    assert told is not None
    assert (told.status, told.reason) == ("True", "Grouped")
    assert told.message == "yunikorn: all pods are scheduled together, by annotations on the pods"
    made = seen(job(decision.status), children=(child(gang="yunikorn"),), features=ALL, spec=given)
    assert not decide(made, NOW).create


def test_kai_gets_a_group_of_its_own_in_the_queue_that_the_pods_name() -> None:
    given = spec(pod={"scheduler_name": "kai-scheduler", "labels": {"kai.scheduler/queue": "team-a"}})
    job_of_attempt = attempt_job(job(), given, attempt=1, defaults=DEFAULTS, gang=GANGS["kai"])
    assert job_of_attempt["metadata"]["annotations"]["kai.scheduler/skip-podgrouper"] == "true"
    assert job_of_attempt["spec"]["template"]["metadata"]["labels"]["kai.scheduler/queue"] == "team-a"
    made = seen(job(PENDING), children=(child(gang="kai"),), features=ALL, spec=given)
    (create,) = decide(made, NOW).create
    assert (create.resource.api_version, create.body["kind"]) == ("scheduling.run.ai/v2alpha2", "PodGroup")
    assert create.body["spec"] == {"minMember": 2, "queue": "team-a"}


@pytest.mark.parametrize("gang", GANGS.values(), ids=GANGS)
def test_each_gang_scheduler_is_documented_tested_and_allowed(gang: Gang) -> None:
    assert gang.name in {name for name, *_ in MARKS}, "what its pods say is tested"
    page = (ROOT / "docs/scheduling.md").read_text()
    assert all(f"`{scheduler}`" in page for scheduler in gang.schedulers - {"default-scheduler"})
    rules = yaml.safe_load((ROOT / "operator/rbac-gang.yaml").read_text())["rules"]
    allowed = {group for rule in rules if "podgroups" in rule["resources"] for group in rule["apiGroups"]}
    assert {kind.group for kind in gang.group.kinds} <= allowed if gang.group else True


def test_every_group_object_and_scheduler_belongs_to_one() -> None:
    kinds = [kind for gang in GANGS.values() if gang.group for kind in gang.group.kinds]
    schedulers = [scheduler for gang in GANGS.values() for scheduler in gang.schedulers]
    assert len({(kind.group, kind.version) for kind in kinds}) == len(kinds)
    assert len(set(schedulers)) == len(schedulers)


@pytest.mark.parametrize(
    ("scheduler", "offers", "says"),
    [
        (None, ClusterFeatures(), "no scheduling.k8s.io PodGroup that it may create"),
        ("volcano", ClusterFeatures(groups={"native": ALL.groups["native"]}), "no scheduling.volcano.sh PodGroup"),
        ("kai-scheduler", ClusterFeatures(), "no scheduling.run.ai PodGroup"),
        ("my-scheduler", ALL, "my-scheduler is not a gang scheduler that the operator knows"),
    ],
)
def test_that_pods_are_scheduled_one_by_one_is_told(scheduler: str | None, offers: ClusterFeatures, says: str) -> None:
    given = spec(pod={"scheduler_name": scheduler})
    decision = decide(seen(job(), features=offers, spec=given), NOW)
    told = find(decision.status, "GangScheduled")
    assert told is not None
    assert (told.status, told.reason) == ("False", "OneByOne")
    assert says in told.message
    assert "finetune.dev/gang" not in decision.create[-1].body["metadata"]["annotations"]


def test_a_single_pod_is_no_gang() -> None:
    decision = decide(seen(job(), features=ALL, spec=spec(nodes=1)), NOW)
    assert find(decision.status, "GangScheduled") is None
    assert "finetune.dev/gang" not in decision.create[-1].body["metadata"]["annotations"]


class Server:
    """Serves PodGroups of some groups, and allows some verbs in some namespaces."""

    def __init__(self, served: set[str], allowed: set[tuple[str, str]]) -> None:
        self.served, self.allowed = served, allowed

    async def discover(self, path: str) -> Raw:
        if path.removeprefix("/apis/") not in self.served:
            raise NotFound("no such group")
        return {"resources": [{"name": "podgroups"}]}

    async def ask(self, path: str, body: Raw) -> Raw:
        assert path.endswith("/selfsubjectaccessreviews")
        wanted = body["spec"]["resourceAttributes"]
        return {"status": {"allowed": (wanted.get("namespace", ""), wanted["verb"]) in self.allowed}}


EVERYWHERE = {("", "create"), ("", "get")}


@pytest.mark.parametrize(
    ("served", "allowed", "namespaces", "offered"),
    [
        ({"scheduling.k8s.io/v1alpha2"}, EVERYWHERE, (), {"native": "v1alpha2"}),
        ({"scheduling.k8s.io/v1alpha2", "scheduling.k8s.io/v1beta1"}, EVERYWHERE, (), {"native": "v1beta1"}),
        ({"scheduling.volcano.sh/v1beta1"}, EVERYWHERE, (), {"volcano": "v1beta1"}),
        ({"scheduling.volcano.sh/v1beta1"}, {("", "get")}, (), {}),
        ({"scheduling.x-k8s.io/v1alpha1"}, {("a", "create"), ("a", "get")}, ("a",), {"coscheduling": "v1alpha1"}),
        ({"scheduling.x-k8s.io/v1alpha1"}, {("a", "create"), ("a", "get")}, ("a", "b"), {}),
        (set(), EVERYWHERE, (), {}),
    ],
)
def test_what_is_served_and_allowed_is_offered(
    served: set[str], allowed: set[tuple[str, str]], namespaces: tuple[str, ...], offered: dict[str, str]
) -> None:
    found = asyncio.run(discover_features(Server(served, allowed), namespaces)).groups
    assert {name: kind.version for name, kind in found.items()} == offered


def test_an_application_of_yunikorn_has_a_name_that_can_be_a_label() -> None:
    """YuniKorn writes it as a label of its placeholder pods, and a label has at most 63 characters."""
    view = job(namespace="n" * 63, name="j" * 48)
    found = set()
    for attempt in (1, 2):
        made = attempt_job(view, spec(), attempt=attempt, defaults=DEFAULTS, gang=GANGS["yunikorn"])
        found.add(made["spec"]["template"]["metadata"]["annotations"]["yunikorn.apache.org/app-id"])
    assert len(found) == 2
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", each) for each in found)
