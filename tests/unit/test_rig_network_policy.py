"""The test cluster's enforcer: what it makes of a job's NetworkPolicy."""

from __future__ import annotations

import re
from typing import Any

import pytest

from finetune_api import names
from finetune_operator.network_policy import network_policy
from tests.cluster.rig.network_policy import ruleset
from tests.support.operator_objects import job

OWN = {names.LABEL_JOB: "a", names.LABEL_UID: "u"}
SPACES = [{"kind": "Namespace", "metadata": {"name": name, "labels": {"name": name}}} for name in ("ml", "watch")]


def pod(ip: str, labels: dict[str, str], namespace: str = "ml", phase: str = "Running") -> dict[str, Any]:
    meta = {"name": ip, "namespace": namespace, "labels": labels}
    return {"kind": "Pod", "metadata": meta, "status": {"podIP": ip, "phase": phase}}


PODS = [
    pod("10.0.0.1", OWN),
    pod("10.0.0.2", OWN),
    pod("10.0.0.3", {}),
    pod("10.0.0.4", OWN, namespace="watch"),
    pod("10.0.0.5", OWN, phase="Succeeded"),
]


def rules(peers: tuple[dict[str, Any], ...]) -> list[str]:
    """Without counters and comments."""
    text = ruleset([*SPACES, *PODS, network_policy(job(), peers)])
    return [re.sub(r" counter| comment \S+", "", line.strip()) for line in text.splitlines() if "daddr" in line]


def test_a_gang_reaches_itself_and_its_agents_are_reached_by_the_peers() -> None:
    assert rules(({"namespaceSelector": {"matchLabels": {"name": "watch"}}},)) == [
        "ip daddr 10.0.0.1 ip saddr { 10.0.0.1, 10.0.0.2 } accept",
        "ip daddr 10.0.0.1 ip saddr { 10.0.0.4 } tcp dport 9400 accept",
        "ip daddr 10.0.0.2 ip saddr { 10.0.0.1, 10.0.0.2 } accept",
        "ip daddr 10.0.0.2 ip saddr { 10.0.0.4 } tcp dport 9400 accept",
        "ip daddr 10.0.0.1 tcp flags & (syn | ack) == syn drop",
        "ip daddr 10.0.0.1 meta l4proto udp drop",
        "ip daddr 10.0.0.2 tcp flags & (syn | ack) == syn drop",
        "ip daddr 10.0.0.2 meta l4proto udp drop",
    ]


def test_peers_that_are_not_there_open_nothing() -> None:
    assert not [line for line in rules(({"podSelector": {"matchLabels": {"no": "pod"}}},)) if "9400" in line]


@pytest.mark.parametrize(
    "peer",
    [
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
    ],
)
def test_what_it_does_not_know_is_an_error_and_not_open(peer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="this enforcer knows"):
        rules((peer,))
