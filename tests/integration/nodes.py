"""Two nodes for puppets to run on.

The cluster itself ends pods on a node that does not exist after 40 seconds, which on a slow machine is in the middle of
a test. These nodes exist, and their leases are renewed, as a kubelet does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime

from finetune_operator.kube.client import AlreadyExists, ApiError
from finetune_operator.kube.resources import LEASES, Raw, Resource
from tests.cluster.rig import Rig
from tests.support.kube_client import Kube

NAMES = ("puppet-0", "puppet-1")
NODES = Resource("", "v1", "nodes", "Node")
RENEW = 5.0
"""Seconds between two renewals; the cluster believes a node dead after 50."""


class Nodes:
    """No scheduler puts pods on them."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._over = threading.Event()

    @contextmanager
    def there(self) -> Iterator[None]:
        """While the block runs."""
        with closing(Kube(self._rig, "kube-node-lease")) as self._kube:
            for name in NAMES:
                with suppress(AlreadyExists):  # of a session that was killed
                    self._kube.request("POST", NODES.path(), _node(name))
                with suppress(AlreadyExists):
                    self._kube.create(_lease(name), LEASES)
            thread = threading.Thread(target=self._renew, name="nodes", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._over.set()
                thread.join(60)
                for name in NAMES:
                    self._kube.request("DELETE", NODES.path(None, name))

    def _renew(self) -> None:
        while not self._over.wait(RENEW):
            for name in NAMES:
                with suppress(ApiError, TimeoutError):
                    self._kube.patch(name, {"spec": _lease(name)["spec"]}, LEASES)


def _node(name: str) -> Raw:
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "a puppet is ready"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"unschedulable": True, "taints": [{"key": "rig.finetune.dev/puppet", "effect": "NoSchedule"}]},
        "status": {"conditions": [ready]},
    }


def _lease(name: str) -> Raw:
    renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed},
    }
