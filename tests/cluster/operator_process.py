"""The operator as a process beside the cluster, with exactly the rights of operator/rbac.yaml."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.rig import Rig
from tests.cluster.rig.host_trees import IMAGE
from tests.cluster.rig.state import free_ports

CHECKOUT = Path(__file__).parents[2]
BIN = CHECKOUT / ".venv" / "bin"
SYSTEM = "finetune-system"
ACCOUNT = "finetune-operator"


@dataclass
class Operator:
    """`python -m finetune_operator`, started, killed and started again by tests."""

    rig: Rig
    kubeconfig: Path
    log: Path
    scope: tuple[str, ...] = ("--all-namespaces",)
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def of(rig: Rig, folder: Path, *scope: str) -> Operator:
        """Installs the CRD, the service account and its rights; starts nothing yet."""
        rig.install_crd(CHECKOUT / "crds" / "finetunejobs.finetune.dev.yaml")
        kubeconfig = rig.service_account_kubeconfig(SYSTEM, ACCOUNT)
        rig.apply(CHECKOUT / "operator" / "rbac.yaml")
        account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SYSTEM}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT}
        kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
        rig.apply({**kind, "metadata": {"name": ACCOUNT}, "roleRef": role, "subjects": [account]})
        return Operator(rig, kubeconfig, folder / "operator.log", scope or ("--all-namespaces",))

    def start(self) -> None:
        """Returns when it is ready."""
        self.begin()
        self.rig.wait_until(self._ready, what=f"the operator (log: {self.log.read_text()[-2000:]})")

    def begin(self) -> None:
        command = [
            BIN / "python", "-m", "finetune_operator", *self.scope,
            "--default-image", IMAGE,
            "--trainer-command", f"{BIN / 'finetune'} agent",
            "--listen", f"127.0.0.1:{self.port}",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=CHECKOUT)

    def kill(self) -> None:
        """As a node that loses its power."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()

    @property
    def metrics_address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the operator ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"http://{self.metrics_address}/readyz", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False
