"""Kubeflow Trainer v2 and JobSet as a side: two processes of this machine, with what their own manifests say.

CRDs, webhooks, settings and the torch runtime come from the modules that the programs were built from. What differs
from a cluster: the webhooks are called by URL instead of by a Service, certificates are the rig's, there is no leader
election, and both may do everything.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.rig import Rig, build, pki
from tests.cluster.rig.process import Program
from tests.cluster.rig.state import free_ports

from .sides import CONTAINER, POD_PLACE, PODS, REQUESTS, Raw, true_conditions

PROGRAMS = ("jobset", "trainer")
MODULES = {"trainer": "github.com/kubeflow/trainer/v2", "jobset": "sigs.k8s.io/jobset"}
GROUP = "trainer.kubeflow.org/v1alpha1"
NAMESPACE = "kubeflow-system"
SHIPPED, RESTARTING = "torch-distributed", "torch-restarting"
KIND_OF_RUNTIME = {SHIPPED: "ClusterTrainingRuntime", RESTARTING: "TrainingRuntime"}


@dataclass
class Kubeflow:
    """`runtime`: the one that they ship, or ours, which restarts the whole gang as an attempt of ours does."""

    rig: Rig
    runtime: str = SHIPPED
    name: str = "kubeflow"
    path: str = f"/apis/{GROUP}/namespaces/{{namespace}}/trainjobs"
    user_names: tuple[str, ...] = tuple(f"system:serviceaccount:{NAMESPACE}:{name}" for name in PROGRAMS)
    _ports: dict[str, int] = field(default_factory=dict)

    def versions(self) -> str:
        found = {name: build.BINARIES[name].version for name in PROGRAMS}
        return f"Kubeflow Trainer {found['trainer']} with JobSet {found['jobset']}"

    def manifests(self, name: str) -> list[tuple[str, Raw]]:
        patch = {"spec": {"template": {"spec": POD_PLACE}}}
        jobs = [{"name": "node", "template": patch}]
        body = {
            "apiVersion": GROUP,
            "kind": "TrainJob",
            "metadata": {"name": name},
            "spec": {
                "runtimeRef": {"name": self.runtime, "kind": KIND_OF_RUNTIME[self.runtime]},
                "trainer": {
                    "numNodes": PODS,
                    "image": CONTAINER["image"],
                    "command": CONTAINER["command"],
                    "resourcesPerNode": {"requests": REQUESTS},
                },
                "runtimePatches": [
                    {
                        "manager": "finetune.dev/bench",
                        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}},
                    }
                ],
            },
        }
        return [(self.path, body)]

    def prepare(self, namespace: str) -> None:
        """The restarting runtime: the failure of a pod fails its Job at once, and JobSet makes all Jobs anew."""
        if self.runtime == SHIPPED:
            return
        pod = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "node", "image": CONTAINER["image"]}],
        }
        job = {
            "name": "node",
            "template": {
                "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                "spec": {"backoffLimit": 0, "template": {"spec": pod}},
            },
        }
        runtime = {
            "apiVersion": GROUP,
            "kind": KIND_OF_RUNTIME[RESTARTING],
            "metadata": {
                "name": RESTARTING,
                "namespace": namespace,
                "labels": {"trainer.kubeflow.org/framework": "torch"},
            },
            "spec": {
                "mlPolicy": {"numNodes": 1, "torch": {}},
                "template": {"spec": {"failurePolicy": {"maxRestarts": 10}, "replicatedJobs": [job]}},
            },
        }
        self.rig.apply(runtime)

    def owner(self, job: str) -> str:
        return job.partition("-")[0]

    def running(self, raw: Raw) -> bool:
        """A TrainJob has no condition for it: its Jobs that are ready are counted."""
        return any(job.get("ready") for job in raw.get("status", {}).get("jobsStatus", ()))

    def terminal(self, raw: Raw) -> bool:
        return bool(true_conditions(raw) & {"Complete", "Failed"})

    # its controllers

    def start(self) -> None:
        processes = self._processes
        self.rig.apply([o for o in self._objects if o["kind"] == "CustomResourceDefinition"])
        self.rig.wait_until(self._served, what="their CRDs", seconds=60)
        hooks = []
        for name in PROGRAMS:
            webhook, health, metrics, status = free_ports(4)
            processes.start(self._program(name, webhook, health, metrics, status), wait=60)
            hooks += [_by_url(o, webhook, self._authority) for o in self._manifests[name] if "webhooks" in o]
        self.rig.apply(hooks)
        runtime = self._module("trainer") / "manifests" / "base" / "runtimes" / "torch_distributed.yaml"
        self.rig.wait_until(lambda: self._takes(runtime), what="the webhooks", seconds=30)

    def stop(self) -> None:
        """Their webhooks too, which would look at everybody's objects."""
        kinds = "validatingwebhookconfigurations,mutatingwebhookconfigurations"
        self.rig.kubectl("delete", kinds, "--all", check=False)
        for name in PROGRAMS:
            self._processes.stop(name)

    def pids(self) -> Mapping[str, int]:
        return {name: pid for name in PROGRAMS if (pid := self.rig.pid(name))}

    @property
    def _processes(self) -> Any:
        assert self.rig.processes is not None
        return self.rig.processes

    def _served(self) -> bool:
        """A CRD that is too new to have conditions makes kubectl fail."""
        return bool(self.rig.kubectl("wait", "--for=condition=Established", "crd", "--all", check=False))

    def _takes(self, file: Path) -> bool:
        self.rig.kubectl("apply", "--server-side", "--force-conflicts", "-f", file, check=False)
        return bool(self.rig.kubectl("get", "clustertrainingruntime", SHIPPED, "--ignore-not-found", "-o", "name"))

    def _program(self, name: str, webhook: int, health: int, metrics: int, status: int) -> Program:
        config = self._settings(name)
        config["leaderElection"] = {"leaderElect": False}
        config["health"] = {**config.get("health", {}), "healthProbeBindAddress": f"127.0.0.1:{health}"}
        config["webhook"] = {**config.get("webhook", {}), "port": webhook, "host": "127.0.0.1"}
        config["metrics"] = {**config.get("metrics", {}), "bindAddress": f"127.0.0.1:{metrics}"}
        if name == "trainer":
            config["certManagement"] = {"enable": False}
            config["statusServer"] = {**config.get("statusServer", {}), "port": status}
        else:
            config["internalCertManagement"] = {"enable": False}
            config["metrics"]["certDir"] = config["webhook"]["certDir"] = str(self._certificates)
        file = self.rig.paths.state / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        return Program(
            name=name,
            argv=(str(self.rig.paths.bin / name), "--config", str(file)),
            env={"KUBECONFIG": str(self._kubeconfig(name)), "TMPDIR": str(self.rig.paths.pki / "hooks")},
            probe=f"http://127.0.0.1:{health}/readyz",
        )

    def _settings(self, name: str) -> dict[str, Any]:
        folder = "manifests/base/manager" if name == "trainer" else "config/components/manager"
        text = (self._module(name) / folder / "controller_manager_config.yaml").read_text()
        config: dict[str, Any] = yaml.safe_load(text)
        return config

    def _kubeconfig(self, name: str) -> Path:
        kubeconfig = self.rig.service_account_kubeconfig(NAMESPACE, name)
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
        account = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
        kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
        self.rig.apply({**kind, "metadata": {"name": name}, "roleRef": role, "subjects": [account]})
        return kubeconfig

    @cached_property
    def _certificates(self) -> Path:
        """Where controller-runtime looks for them below TMPDIR."""
        folder = self.rig.paths.pki / "hooks" / "k8s-webhook-server" / "serving-certs"
        folder.mkdir(parents=True, exist_ok=True)
        pki.issue(self.rig.paths.pki, "hook", "/CN=rig-hook", names="IP:127.0.0.1")
        for source, target in (("hook.crt", "tls.crt"), ("hook.key", "tls.key")):
            (folder / target).write_bytes((self.rig.paths.pki / source).read_bytes())
        return folder

    @cached_property
    def _authority(self) -> str:
        return base64.b64encode((self.rig.paths.pki / "ca.crt").read_bytes()).decode()

    @cached_property
    def _manifests(self) -> dict[str, list[Raw]]:
        self._certificates  # noqa: B018  (made before the programs look for them)
        trainer, jobset = (self._module(name) for name in ("trainer", "jobset"))
        folders = {
            "trainer": (trainer / "manifests/base/crds", trainer / "manifests/base/webhook"),
            "jobset": (jobset / "config/default",),
        }
        return {
            name: [o for each in found for o in yaml.safe_load_all(self.rig.kubectl("kustomize", each)) if o]
            for name, found in folders.items()
        }

    @property
    def _objects(self) -> list[Raw]:
        return [o for objects in self._manifests.values() for o in objects]

    def _module(self, name: str) -> Path:
        """The source that the program was built from."""
        command = ["go", "mod", "download", "-json", f"{MODULES[name]}@{build.BINARIES[name].version}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return Path(json.loads(done.stdout)["Dir"])


def _by_url(configuration: Raw, port: int, authority: str) -> Raw:
    hooks = []
    for hook in configuration["webhooks"]:
        url = f"https://127.0.0.1:{port}{hook['clientConfig']['service']['path']}"
        hooks.append({**hook, "clientConfig": {"url": url, "caBundle": authority}})
    return {**configuration, "webhooks": hooks}
