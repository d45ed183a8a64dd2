"""A small enforcer of NetworkPolicies, for the node's bridge: its own network plugin enforces none.

    with enforced(rig):
        ...                      # policies hold, about a second after a pod or a policy changed

Ingress only, by matchLabels, ipBlock.cidr and numbers of ports: what the operator's own policies use; anything else is
an error. No connection is tracked: to a pod that a policy selects, the first packet of a TCP connection and all UDP
passes only from a peer. Traffic from the node itself does not cross the bridge and is not restricted, as is usual.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from .process import run
from .rig import Rig
from .state import RigError

TABLE = "rig-policies"
Json = dict[str, Any]


@contextlib.contextmanager
def enforced(rig: Rig) -> Iterator[None]:
    """Until the end of the block; then everything is open again."""
    stop, problems = threading.Event(), list[Exception]()
    loaded = _load(rig, "")

    def follow() -> None:
        nonlocal loaded
        while not stop.wait(1):
            try:
                loaded = _load(rig, loaded)
            except (RigError, ValueError) as error:
                problems.append(error)
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
        run("nft", "delete", "table", "bridge", TABLE, check=False)
    if problems:
        raise problems[0]


def accepted(policy: str) -> int:
    """Packets that the rules of a policy let through since they last changed."""
    rules = json.loads(run("nft", "-j", "list", "table", "bridge", TABLE))["nftables"]
    own = [each["rule"] for each in rules if each.get("rule", {}).get("comment") == policy]
    return sum(part["counter"]["packets"] for rule in own for part in rule["expr"] if "counter" in part)


def _load(rig: Rig, before: str) -> str:
    """Replaces all rules at once, if they are others than before."""
    text = ruleset(rig.get("pods,networkpolicies,namespaces", "-A")["items"])
    if text != before:
        run("nft", "-f", "-", stdin=text)
    return text


def ruleset(items: list[Json]) -> str:
    """nftables for these pods, policies and namespaces."""
    spaces = {i["metadata"]["name"]: i["metadata"].get("labels", {}) for i in items if i["kind"] == "Namespace"}
    pods = [i for i in items if i["kind"] == "Pod" and i.get("status", {}).get("podIP") and not _over(i)]
    lines, isolated = list[str](), set[str]()
    for policy in (i for i in items if i["kind"] == "NetworkPolicy"):
        name, home, spec = policy["metadata"]["name"], policy["metadata"]["namespace"], policy["spec"]
        if spec.get("policyTypes") != ["Ingress"]:
            raise ValueError(f"NetworkPolicy {name}: this enforcer knows Ingress only")
        targets = [pod for pod in pods if _in(pod, home) and _matches(spec["podSelector"], _labels(pod))]
        for address in sorted(pod["status"]["podIP"] for pod in targets):
            isolated.add(address)
            for rule in spec.get("ingress", ()):
                sources = sorted(_addresses(rule["from"], home, pods, spaces)) if "from" in rule else None
                lines += _accepting(address, sources, rule.get("ports", ()), comment=f"{home}/{name}")
    for address in sorted(isolated):
        lines += [
            f"ip daddr {address} tcp flags & (syn | ack) == syn drop",
            f"ip daddr {address} meta l4proto udp drop",
        ]
    rules = "\n    ".join(lines)
    return f"""table bridge {TABLE}
delete table bridge {TABLE}
table bridge {TABLE} {{
  chain forward {{
    type filter hook forward priority 0; policy accept;
    {rules}
  }}
}}
"""


def _accepting(address: str, sources: list[str] | None, ports: Any, *, comment: str) -> list[str]:
    if sources == []:
        return []
    where = f"ip saddr {{ {', '.join(sources)} }} " if sources else ""
    which = [f"{port.get('protocol', 'TCP').lower()} dport {int(port['port'])} " for port in ports] or [""]
    return [f'ip daddr {address} {where}{each}counter accept comment "{comment}"' for each in which]


def _addresses(peers: list[Json], home: str, pods: list[Json], spaces: dict[str, Json]) -> Iterator[str]:
    for peer in peers:
        if block := peer.get("ipBlock"):
            if "except" in block:
                raise ValueError("this enforcer knows no exceptions of an ipBlock")
            yield block["cidr"]
            continue
        for pod in pods:
            space = pod["metadata"]["namespace"]
            selector = peer.get("namespaceSelector")
            there = space == home if selector is None else _matches(selector, spaces[space])
            if there and _matches(peer.get("podSelector", {}), _labels(pod)):
                yield pod["status"]["podIP"]


def _matches(selector: Json, labels: Json) -> bool:
    if selector.keys() - {"matchLabels"}:
        raise ValueError(f"this enforcer knows matchLabels only: {selector}")
    return selector.get("matchLabels", {}).items() <= labels.items()


def _labels(pod: Json) -> Json:
    return pod["metadata"].get("labels", {})


def _in(pod: Json, namespace: str) -> bool:
    return bool(pod["metadata"]["namespace"] == namespace)


def _over(pod: Json) -> bool:
    """Its address may be another pod's by now."""
    return pod["status"].get("phase") in ("Succeeded", "Failed")
