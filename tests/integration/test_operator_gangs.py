"""Gangs that are scheduled together: Kubernetes' own PodGroup on a real API server that serves it, Volcano's and the
coscheduling plugin's with stand-ins for their kinds; and clusters that offer nothing of that, or not to us."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.status import FailureClass
from finetune_operator.gangs import GANGS
from finetune_operator.kube.resources import Raw, Resource
from tests.cluster.rig import Rig
from tests.support.kube_client import DISCOVERY, Kube, manifest, wait_for
from tests.support.operator_harness import Start
from tests.support.operator_rbac import allow
from tests.support.operator_scenarios import finish

GROUPS = {name: gang.group.kinds for name, gang in GANGS.items() if gang.group}
NATIVE = GROUPS["native"][-1]
GATES = "--feature-gates=GenericWorkload=true,GangScheduling=true"
BROKEN = TerminationMessage(
    failure_class=FailureClass.Internal, reason=Reason.UnexpectedError, message="boom", exit_code=70
)


@pytest.fixture(scope="module")
def native(control_plane: Rig) -> Iterator[Rig]:
    """The API server serves PodGroups, and the controllers look after them."""
    with (
        control_plane.flags("apiserver", GATES, f"--runtime-config={NATIVE.api_version}=true"),
        control_plane.flags("controller-manager", GATES),
    ):
        yield control_plane


def stand_in(rig: Rig, kind: Resource) -> Raw:
    """A kind with any spec, for a scheduler that is not there."""
    name = f"{kind.plural}.{kind.group}"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": kind.version, "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {"plural": kind.plural, "kind": kind.kind, "singular": "podgroup"},
            "versions": [version],
        },
    }
    rig.apply(crd)
    rig.wait_established(f"crd/{name}")
    discovery = f"/apis/{kind.api_version}"
    rig.wait_until(lambda: kind.plural in rig.kubectl("get", "--raw", discovery, check=False), what=discovery)
    return crd


def test_the_native_group_is_made_for_each_attempt(native: Rig, start: Start, kube: Kube) -> None:
    allow(native, kube.namespace, file="rbac-gang.yaml")
    start()
    kube.create(manifest("a"))
    pods = kube.await_gang("a", 1)
    assert {pod["spec"]["schedulingGroup"]["podGroupName"] for pod in pods} == {"a-1"}
    group = wait_for(lambda: kube.get("a-1", NATIVE), what="the group")
    assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    assert [(o["kind"], o["name"]) for o in group["metadata"]["ownerReferences"]] == [("Job", "a-1")]
    told = kube.condition("a", "GangScheduled")
    assert (told["status"], told["reason"]) == ("True", "Grouped")
    assert "native" in told["message"]

    _, second = kube.run("a", 1)
    kube.end(second, code=70, words=BROKEN)
    finish(kube, "a", 2)
    assert kube.get("a-2", NATIVE)
    wait_for(lambda: not kube.get("a-1", NATIVE), what="the old group is gone with its Job", seconds=DISCOVERY)


@pytest.mark.parametrize("writes", [3, 4])
def test_an_operator_that_died_around_the_group_has_a_successor(
    native: Rig, start: Start, kube: Kube, writes: int
) -> None:
    """After the Job and before its group, or after both: the successor makes it, or finds it."""
    allow(native, kube.namespace, file="rbac-gang.yaml")
    first = start(die_after=writes)
    kube.create(manifest("a"))
    wait_for(lambda: first.dead, what="its death")
    made = [name for name in ("jobs", "podgroups") if f"create {name}" in first.writes]
    assert made == ["jobs", "podgroups"][: writes - 2]
    start()
    wait_for(lambda: kube.get("a-1", NATIVE), what="the group")
    finish(kube, "a", 1)


def test_a_single_pod_needs_no_group(native: Rig, start: Start, kube: Kube) -> None:
    allow(native, kube.namespace, file="rbac-gang.yaml")
    operator = start()
    kube.create(manifest("a", nodes=1))
    (pod,) = kube.run("a", 1)
    assert "schedulingGroup" not in pod["spec"]
    assert not kube.condition("a", "GangScheduled")
    assert "create podgroups" not in operator.writes


def test_without_the_right_pods_are_scheduled_one_by_one(native: Rig, start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a"))
    pods = kube.await_gang("a", 1)
    assert not [pod for pod in pods if "schedulingGroup" in pod["spec"]]
    told = kube.condition("a", "GangScheduled")
    assert (told["status"], told["reason"]) == ("False", "OneByOne")
    assert "scheduling.k8s.io PodGroup that it may create" in told["message"]
    finish(kube, "a", 1)


@pytest.mark.parametrize(
    ("scheduler", "gang", "key", "spec"),
    [
        ("volcano", "volcano", ("annotations", "scheduling.k8s.io/group-name"), {"minMember": 2}),
        (
            "scheduler-plugins-scheduler",
            "coscheduling",
            ("labels", "scheduling.x-k8s.io/pod-group"),
            {"minMember": 2, "scheduleTimeoutSeconds": 60},
        ),
    ],
)
def test_another_scheduler_is_told_in_its_own_way(
    start: Start, kube: Kube, scheduler: str, gang: str, key: tuple[str, str], spec: Raw
) -> None:
    kind = GROUPS[gang][0]
    crd = stand_in(kube.rig, kind)
    try:
        allow(kube.rig, kube.namespace, file="rbac-gang.yaml")
        start()
        kube.create(manifest("a", pod={"schedulerName": scheduler}))
        for pod in kube.await_gang("a", 1):
            assert pod["metadata"][key[0]][key[1]] == "a-1"
        group = wait_for(lambda: kube.get("a-1", kind), what="the group")
        assert group["spec"] == spec
        assert gang in kube.condition("a", "GangScheduled")["message"]
        finish(kube, "a", 1)
    finally:
        kube.rig.kubectl("delete", "crd", crd["metadata"]["name"])


def test_a_scheduler_that_is_not_there_is_named(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", pod={"schedulerName": "volcano"}))
    kube.await_gang("a", 1)
    assert "scheduling.volcano.sh PodGroup that it may create" in kube.condition("a", "GangScheduled")["message"]
