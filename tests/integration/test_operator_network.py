"""NetworkPolicies of jobs on a real API server, by an operator with exactly the rights of operator/rbac-network.yaml.

Whether packets are dropped is up to the network plugin: tests/cluster/test_network_policy.py."""

from __future__ import annotations

from finetune_operator.kube.resources import NETWORK_POLICIES, Raw
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start
from tests.support.operator_rbac import allow
from tests.support.operator_scenarios import restart

PEER: Raw = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "finetune-system"}}}
WRONG: Raw = {"podSelector": {"matchLabels": {"not a key!": "x"}}}


def told(kube: Kube, text: str) -> bool:
    return text in kube.condition("a", "Running").get("message", "")


def test_no_pod_is_made_without_the_policy_and_one_policy_serves_all_attempts(start: Start, kube: Kube) -> None:
    operator = start(peers=(PEER,))
    kube.create(manifest("b"))
    wait_for(lambda: "networkpolicies" in kube.condition("b", "Running").get("message", ""), what="rights are missing")
    assert kube.jobs() == []
    allow(kube.rig, kube.namespace, file="rbac-network.yaml")
    kube.await_gang("b", 1)
    kube.delete("b")

    restart(kube, "a")
    wait_for(lambda: kube.get("b") is None, what="the other job is gone")
    (policy,) = [each for each in kube.list(NETWORK_POLICIES) if each["metadata"]["name"] == "a"]
    assert [(each["kind"], each["name"]) for each in policy["metadata"]["ownerReferences"]] == [("FineTuneJob", "a")]
    assert policy["spec"]["ingress"][1]["from"] == [PEER]
    for pod in kube.gang("a", 2):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert operator.writes["create networkpolicies"] >= 3
    kube.delete("a")
    wait_for(lambda: not kube.list(NETWORK_POLICIES), what="the policies are gone with their jobs")


def test_peers_that_the_api_server_refuses_hold_a_job_up_and_do_not_end_it(start: Start, kube: Kube) -> None:
    allow(kube.rig, kube.namespace, file="rbac-network.yaml")
    first = start(peers=(WRONG,))
    kube.create(manifest("a"))
    wait_for(lambda: told(kube, "NetworkPolicy a cannot be created yet"), what="told")
    assert (kube.phase("a"), kube.jobs()) == ("Pending", [])
    first.stop()
    start(peers=(PEER,))
    kube.await_gang("a", 1)
