"""A real Kueue beside the API server, on loopback: its CRDs, its webhooks for batch Jobs, its controller.

It looks after Jobs with a queue's label in namespaces labelled `rig.finetune.dev/kueue: managed`, and no other request
passes its webhooks. `ensure` starts it, the rig's end stops it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .process import Program, run
from .rig import Rig
from .state import State, write_private

MANAGED = {"rig.finetune.dev/kueue": "managed"}
NAMESPACE = "kueue-system"
SERVICE = "kueue-webhook-service"
API = "kueue.x-k8s.io/v1beta2"
GROUPS = {"batch", "kueue.x-k8s.io"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Kueue:
    rig: Rig

    @staticmethod
    def ensure(rig: Rig) -> Kueue:
        """Started and answering. Needs a rig of our own."""
        state, processes = rig.state, rig.processes
        assert state is not None
        assert processes is not None
        if processes.pid("kueue") is None:
            _install(rig, state)
        processes.start(_program(rig, state), wait=180)
        return Kueue(rig)

    def stop(self) -> None:
        """With its webhooks, so that nothing waits for it."""
        for kind in ("validating", "mutating"):
            name = f"kueue-{kind}-webhook-configuration"
            self.rig.kubectl("delete", f"{kind}webhookconfiguration", name, "--ignore-not-found")
        self.rig.stop("kueue")

    def manage(self, namespace: str) -> None:
        labels = [f"{key}={value}" for key, value in MANAGED.items()]
        self.rig.kubectl("label", "namespace", namespace, "--overwrite", *labels)

    def queue(self, namespace: str, name: str, *, cpu: str) -> None:
        """A LocalQueue in the namespace, with a ClusterQueue of its own that has so much quota and preempts by
        priority."""
        cluster_queue = f"{namespace}-{name}"
        flavor = {"name": cluster_queue, "resources": [{"name": "cpu", "nominalQuota": cpu}]}
        spec = {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [{"coveredResources": ["cpu"], "flavors": [flavor]}],
        }
        self.rig.apply(
            [
                {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": cluster_queue}, "spec": {}},
                {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": cluster_queue}, "spec": spec},
                {
                    "apiVersion": API,
                    "kind": "LocalQueue",
                    "metadata": {"name": name, "namespace": namespace},
                    "spec": {"clusterQueue": cluster_queue},
                },
            ]
        )


def _install(rig: Rig, state: State) -> None:
    """CRDs, webhooks by URL, and the Secret with the certificate that the webhooks serve."""
    files = rig.paths.bin / "kueue.files"
    crds = [yaml.safe_load(file.read_text()) for file in sorted((files / "crd" / "bases").glob("*.yaml"))]
    converted = {
        yaml.safe_load(file.read_text())["metadata"]["name"]
        for file in (files / "crd" / "patches").glob("webhook_in_*.yaml")
    }
    for crd in crds:
        if crd["metadata"]["name"] in converted:
            client = {"url": _url(state, "/convert")}
            webhook = {"clientConfig": client, "conversionReviewVersions": ["v1"]}
            crd["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
    hooks = yaml.safe_load_all((files / "webhook" / "manifests.yaml").read_text())
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    rig.apply([namespace, *crds])
    rig.apply([_secret(_certificate(rig.paths.state)), *(_configuration(state, each) for each in hooks)])
    names = [f"crd/{crd['metadata']['name']}" for crd in crds]
    rig.wait_established(*names)


def _configuration(state: State, manifest: Json) -> Json:
    """Of Kueue's webhooks those for what it serves here, in its namespaces."""
    kept = []
    for hook in manifest["webhooks"]:
        if {group for rule in hook["rules"] for group in rule["apiGroups"]} <= GROUPS:
            url = _url(state, hook["clientConfig"]["service"]["path"])
            kept.append({**hook, "clientConfig": {"url": url}, "namespaceSelector": {"matchLabels": MANAGED}})
    name = f"kueue-{manifest['metadata']['name']}"
    return {**manifest, "metadata": {"name": name}, "webhooks": kept}


def _url(state: State, path: str) -> str:
    return f"https://127.0.0.1:{state.ports['kueue_webhook']}{path}"


def _certificate(folder: Path) -> Path:
    """One certificate is authority and server's: Kueue checks both, and keeps them if they are good."""
    certificates = folder / "kueue" / "certs"
    if not (certificates / "tls.crt").exists():
        certificates.mkdir(parents=True, exist_ok=True)
        certificates.chmod(0o700)
        key, names = certificates / "pkcs8.key", f"DNS:kueue-ca,DNS:{SERVICE}.{NAMESPACE}.svc,IP:127.0.0.1"
        new = ("-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=kueue-ca")
        run("openssl", "req", "-x509", *new, "-addext", f"subjectAltName={names}", "-keyout", key,
            "-out", certificates / "tls.crt")  # fmt: skip
        run("openssl", "rsa", "-in", key, "-traditional", "-out", certificates / "tls.key")
    return certificates


def _secret(certificates: Path) -> Json:
    files = {"ca.crt": "tls.crt", "ca.key": "tls.key", "tls.crt": "tls.crt", "tls.key": "tls.key"}
    data = {name: base64.b64encode((certificates / file).read_bytes()).decode() for name, file in files.items()}
    meta = {"name": "kueue-webhook-server-cert", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data}


def _program(rig: Rig, state: State) -> Program:
    health = f"127.0.0.1:{state.ports['kueue_health']}"
    config = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": health},
        "metrics": {"bindAddress": "0"},
        "webhook": {
            "host": "127.0.0.1",
            "port": state.ports["kueue_webhook"],
            "certDir": str(rig.paths.state / "kueue" / "certs"),
        },
        "leaderElection": {"leaderElect": False},
        "integrations": {"frameworks": ["batch/job"]},
        "internalCertManagement": {
            "enable": True,
            "webhookServiceName": SERVICE,
            "webhookSecretName": "kueue-webhook-server-cert",
        },
        "managedJobsNamespaceSelector": {"matchLabels": MANAGED},
        "featureGates": {"MultiKueue": False, "VisibilityOnDemand": False},
    }
    file = rig.paths.state / "kueue" / "config.yaml"
    write_private(file, json.dumps(config))
    return Program(
        name="kueue",
        argv=(str(rig.paths.bin / "kueue"), f"--config={file}"),
        env={"KUBECONFIG": str(rig.kubeconfig)},
        probe=f"http://{health}/readyz",
    )
