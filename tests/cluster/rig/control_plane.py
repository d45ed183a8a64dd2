"""etcd, kube-apiserver and kube-controller-manager on loopback: what integration tests need, as any user.

Without a node, pods are made by the Job controller and stay as they are; tests write their status. So that the same
tests behave the same while a node runs, the API server gives pods of namespaces labelled `rig.finetune.dev/pods: fake`
a scheduler that does not exist: nobody but the test touches them.
"""

from __future__ import annotations

import json
from typing import Any

from . import pki
from .process import Processes, Program, run
from .state import ACTORS, Paths, State, write_private

SERVICE_NETWORK = "10.96.0.0/16"
FAKE_PODS_LABEL = "rig.finetune.dev/pods"
NOBODY = "rig-nobody"
PROBE_NAMESPACE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "rig-probe", "labels": {FAKE_PODS_LABEL: "fake"}},
}
PROBE_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "probe", "namespace": "rig-probe"},
    "spec": {"containers": [{"name": "c", "image": "none"}]},
}
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "nonResourceURLs": ["/*"]}, {"level": "Metadata"}],
}
FAKE_PODS = [
    {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "rig-fake-pods"},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {FAKE_PODS_LABEL: "fake"}},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ],
            },
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [
                {
                    "patchType": "ApplyConfiguration",
                    "applyConfiguration": {"expression": f'Object{{spec: Object.spec{{schedulerName: "{NOBODY}"}}}}'},
                }
            ],
        },
    },
    {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "rig-fake-pods"},
        "spec": {"policyName": "rig-fake-pods"},
    },
]


def server(state: State) -> str:
    return f"https://127.0.0.1:{state.ports['apiserver']}"


def start(paths: Paths, state: State, processes: Processes) -> None:
    """Starts what does not run yet and returns when objects can be created and controllers act on them."""
    pki.make(paths, state)
    authority = (paths.pki / "ca.crt").read_bytes()
    for actor in ACTORS:
        target, token = paths.kubeconfig(actor), state.tokens[actor]
        pki.write_kubeconfig(target, server=server(state), authority=authority, user=actor, token=token)
    processes.start(_etcd(paths, state))
    processes.start(_apiserver(paths, state), wait=180)
    processes.start(_controller_manager(paths, state))
    where = ("--kubeconfig", paths.kubeconfig("admin"), "--cache-dir", paths.state / "kubectl")
    kubectl = (paths.bin / "kube", "kubectl", *where)
    run(*kubectl, "apply", "--server-side", "-f", "-", stdin=json.dumps(_list(*FAKE_PODS, PROBE_NAMESPACE)))

    def ready() -> bool:
        """Service accounts are made and the API server has taken up the policy, which it does some time after."""
        question = (*kubectl, "create", "--dry-run=server", "-o", "jsonpath={.spec.schedulerName}", "-f", "-")
        return run(*question, stdin=json.dumps(PROBE_POD), check=False) == NOBODY

    processes.wait_for("controller-manager", ready, seconds=180)


def _list(*items: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _etcd(paths: Paths, state: State) -> Program:
    client, peer = (f"http://127.0.0.1:{state.ports[name]}" for name in ("etcd", "etcd_peer"))
    (paths.state / "etcd").mkdir(mode=0o700, parents=True, exist_ok=True)
    return Program(
        name="etcd",
        argv=(
            str(paths.bin / "etcd"),
            f"--data-dir={paths.state / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # a test's data need not survive a power cut
            "--log-level=warn",
        ),
        probe=f"{client}/health",
    )


def _apiserver(paths: Paths, state: State) -> Program:
    audit_policy = paths.state / "audit.yaml"
    write_private(audit_policy, json.dumps(AUDIT_POLICY))
    flags = {
        "etcd-servers": f"http://127.0.0.1:{state.ports['etcd']}",
        "bind-address": "127.0.0.1",
        "secure-port": str(state.ports["apiserver"]),
        "advertise-address": pki.BRIDGE_ADDRESS,  # pods come in by the bridge (node.py); loopback cannot be advertised
        "endpoint-reconciler-type": "none",
        "tls-cert-file": str(paths.pki / "api.crt"),
        "tls-private-key-file": str(paths.pki / "api.key"),
        "token-auth-file": str(paths.pki / "tokens.csv"),
        "authorization-mode": "Node,RBAC",
        "service-account-key-file": str(paths.pki / "sa.pub"),
        "service-account-signing-key-file": str(paths.pki / "sa.key"),
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-cluster-ip-range": SERVICE_NETWORK,
        "kubelet-client-certificate": str(paths.pki / "kubelet-client.crt"),
        "kubelet-client-key": str(paths.pki / "kubelet-client.key"),
        "kubelet-preferred-address-types": "InternalIP",
        "audit-policy-file": str(audit_policy),
        "audit-log-path": str(paths.audit_log),
        "audit-log-mode": "blocking",  # a test that saw a reply finds its line
        "audit-log-maxsize": "2000",
    }
    if state.features:
        flags["feature-gates"] = state.features
    if state.runtime_config:
        flags["runtime-config"] = state.runtime_config
    words = [f"--{name}={value}" for name, value in flags.items()]
    return Program(
        name="apiserver",
        argv=(str(paths.bin / "kube"), "kube-apiserver", *words),
        probe=f"{server(state)}/readyz",
    )


def _controller_manager(paths: Paths, state: State) -> Program:
    flags = {
        "kubeconfig": str(paths.kubeconfig("system:kube-controller-manager")),
        "secure-port": "0",
        "service-account-private-key-file": str(paths.pki / "sa.key"),
        "root-ca-file": str(paths.pki / "ca.crt"),
        "use-service-account-credentials": "true",
        "leader-elect": "false",
        "kube-api-qps": "500",  # the default, 20, would throttle pod creation and not what is tested
        "kube-api-burst": "1000",
    }
    if state.features:
        flags["feature-gates"] = state.features
    words = [f"--{name}={value}" for name, value in flags.items()]
    return Program(name="controller-manager", argv=(str(paths.bin / "kube"), "kube-controller-manager", *words))
