"""What is compared: an operator, or none, that makes a Job of two pods on fake nodes out of what a client creates."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from finetune_api import names
from tests.cluster.operator_process import Operator
from tests.cluster.rig import Rig

from .scale import SELECTOR, TOLERATION

Raw = dict[str, Any]
PODS = 2
REQUESTS = {"cpu": "100m"}
POD_PLACE: Raw = {"nodeSelector": SELECTOR, "tolerations": [TOLERATION]}
CONTAINER: Raw = {
    "name": "node",
    "image": "example.com/none:1",
    "command": ["/bin/sleep", "1000"],
    "resources": {"requests": REQUESTS},
}


class Side(Protocol):
    """How a burst runs on it. Paths hold `{namespace}`."""

    name: str
    path: str
    """Of the resources that are measured."""
    user_names: tuple[str, ...]
    """Of its controllers, as the audit log calls them."""

    def versions(self) -> str: ...

    def prepare(self, namespace: str) -> None:
        """What a namespace needs before the first resource."""

    def manifests(self, name: str) -> list[tuple[str, Raw]]:
        """Paths and objects that a client creates; the last is the resource that is measured."""

    def owner(self, job: str) -> str:
        """The resource to which a Job of this name belongs."""

    def running(self, raw: Raw) -> bool: ...

    def terminal(self, raw: Raw) -> bool: ...

    def start(self) -> None:
        """Its controllers, fresh."""

    def stop(self) -> None: ...

    def pids(self) -> Mapping[str, int]:
        """Of its controllers."""


def true_conditions(raw: Raw) -> set[str]:
    return {c["type"] for c in raw.get("status", {}).get("conditions", ()) if c["status"] == "True"}


def finetunejob(name: str) -> Raw:
    spec = {
        "model": {"uri": "hf://org/model"},
        "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
        "output": {"uri": f"s3://corp/models/{name}"},
        "nodes": PODS,
        "resources": {"requests": REQUESTS},
        "pod": POD_PLACE,
    }
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}


@dataclass
class Ours:
    """This operator, with the rights of operator/rbac.yaml, as people start it."""

    rig: Rig
    folder: Path
    name: str = "ours"
    path: str = f"/apis/{names.API_VERSION}/namespaces/{{namespace}}/{names.PLURAL}"
    user_names: tuple[str, ...] = ("system:serviceaccount:finetune-system:finetune-operator",)
    _process: Operator | None = field(default=None, repr=False)

    def versions(self) -> str:
        packages = ("kopf", "aiohttp", "uvloop", "orjson", "pydantic")
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        own = importlib.metadata.version("finetune-operator")
        return f"finetune-operator {own} (Python {sys.version.partition(' ')[0]}, {found})"

    def prepare(self, namespace: str) -> None:
        pass

    def manifests(self, name: str) -> list[tuple[str, Raw]]:
        return [(self.path, finetunejob(name))]

    def owner(self, job: str) -> str:
        return job.rpartition("-")[0]

    def running(self, raw: Raw) -> bool:
        return raw.get("status", {}).get("phase") == "Running"

    def terminal(self, raw: Raw) -> bool:
        return raw.get("status", {}).get("phase") in ("Succeeded", "Failed")

    def start(self) -> None:
        if self._process is None:
            self._process = Operator.of(self.rig, self.folder)
        self._process.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def pids(self) -> Mapping[str, int]:
        assert self._process is not None
        assert self._process.process is not None
        return {"operator": self._process.process.pid}

    def begin(self) -> None:
        """Starts it without waiting."""
        assert self._process is not None
        self._process.begin()


@dataclass(frozen=True)
class Bare:
    """No operator: a client creates the Service and the Job that a gang needs. The bound of what Kubernetes can do."""

    name: str = "bare"
    path: str = "/apis/batch/v1/namespaces/{namespace}/jobs"
    user_names: tuple[str, ...] = ()

    def versions(self) -> str:
        return "Job and headless Service by the client"

    def prepare(self, namespace: str) -> None:
        pass

    def manifests(self, name: str) -> list[tuple[str, Raw]]:
        selector = {"batch.kubernetes.io/job-name": name}
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector},
        }
        pod = {"restartPolicy": "Never", "subdomain": name, "containers": [CONTAINER], **POD_PLACE}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {
                "completionMode": "Indexed",
                "completions": PODS,
                "parallelism": PODS,
                "backoffLimit": 0,
                "template": {"spec": pod},
            },
        }
        return [("/api/v1/namespaces/{namespace}/services", service), (self.path, job)]

    def owner(self, job: str) -> str:
        return job

    def running(self, raw: Raw) -> bool:
        """The Job controller counts about a second after the pods run."""
        return (raw.get("status", {}).get("ready") or 0) >= PODS

    def terminal(self, raw: Raw) -> bool:
        return bool(true_conditions(raw) & {"Complete", "Failed"})

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def pids(self) -> Mapping[str, int]:
        return {}
