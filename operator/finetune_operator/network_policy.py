"""The NetworkPolicy of a FineTuneJob, where the operator's --job-network-policy asks for one. Pure.

torchrun's rendezvous and the collectives of gloo and NCCL have no authentication and choose ports of their own. So all
ports of a job's pods are open to the pods of the same job and to no others; the agent's port is also open to the peers
that the operator was given: itself, and the readers of metrics. One policy covers all attempts and is deleted with the
FineTuneJob. Traffic from pods is not restricted.
"""

from __future__ import annotations

import json

from finetune_api import names

from .kube.resources import NETWORK_POLICIES, Raw
from .objects import metadata
from .state.views import JobView

PEER_KEYS = frozenset({"podSelector", "namespaceSelector", "ipBlock"})


def network_policy(job: JobView, peers: tuple[Raw, ...]) -> Raw:
    """Of the pods of this job, by name and uid: no pod of an earlier job of the same name is a peer."""
    own = {"matchLabels": {names.LABEL_JOB: job.name, names.LABEL_UID: job.uid}}
    agent = {"ports": [{"port": names.AGENT_PORT, "protocol": "TCP"}], "from": [*peers]}
    return {
        "apiVersion": NETWORK_POLICIES.api_version,
        "kind": NETWORK_POLICIES.kind,
        "metadata": metadata(job, job.name, {}),
        "spec": {
            "podSelector": own,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": own}]}, *([agent] if peers else [])],
        },
    }


def peers_of(text: str) -> tuple[Raw, ...] | None:
    """The argument's JSON list of NetworkPolicy peers; None where it is empty, and no policies are made.

    ValueError for anything else: a rule without peers would admit all pods."""
    if not text:
        return None
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("not a JSON list")
    for peer in found:
        if not isinstance(peer, dict) or not peer or peer.keys() - PEER_KEYS:
            raise ValueError(f"not a peer with one of {', '.join(sorted(PEER_KEYS))}: {json.dumps(peer)}")
    return tuple(found)
