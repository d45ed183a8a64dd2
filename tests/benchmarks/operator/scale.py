"""The rig made wide: a scheduler, and nodes and pods that only KWOK plays. Their addresses lead nowhere."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.rig import Rig, build, lifecycle
from tests.cluster.rig.node import scheduler
from tests.cluster.rig.process import Program
from tests.cluster.rig.state import Paths

HERE = Path(__file__).parent
NODES = 20
POD_ADDRESSES = "198.18.0.0/15"
"""Of RFC 2544, for benchmarks: nobody has them."""
SELECTOR = {"type": "kwok"}
TOLERATION = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}


@contextlib.contextmanager
def wide_rig(*programs: str) -> Iterator[Rig]:
    """A control plane, a scheduler and `NODES` fake nodes. All of it goes at the end.

    `programs`: what else of the rig's table is needed."""
    paths = Paths()
    build.build((*build.FAKE_NODES, *programs), paths, say=build.say_on_stderr)
    rig = lifecycle.join(paths, say=build.say_on_stderr)
    try:
        assert rig.state is not None
        assert rig.processes is not None
        rig.processes.start(scheduler(paths, rig.state))
        rig.processes.start(_kwok(paths))
        rig.apply([_node(number) for number in range(NODES)])
        rig.kubectl("wait", "--for=condition=Ready", "node", "-l", "type=kwok", "--timeout=60s")
        with _leading_nowhere():
            yield rig
    finally:
        lifecycle.leave(paths)


def _kwok(paths: Paths) -> Program:
    flags = {
        "kubeconfig": str(paths.kubeconfig("rig:tests")),
        "config": str(HERE / "kwok_pods.yaml"),
        "manage-all-nodes": "false",
        "manage-nodes-with-label-selector": "type=kwok",
        "cidr": POD_ADDRESSES,
        "node-ip": "198.18.0.1",
        "node-lease-duration-seconds": "40",
    }
    return Program(name="kwok", argv=(str(paths.bin / "kwok"), *(f"--{name}={value}" for name, value in flags.items())))


def _node(number: int) -> dict[str, object]:
    room = {"cpu": "1k", "memory": "4Ti", "pods": "10k"}
    name = f"fake-{number}"
    labels = {**SELECTOR, "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": [{"key": TOLERATION["key"], "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": room, "allocatable": room},
    }


@contextlib.contextmanager
def _leading_nowhere() -> Iterator[None]:
    """Connections to fake pods are refused at once and leave this machine for nowhere; only root can arrange that."""
    route = ("unreachable", POD_ADDRESSES)
    if os.geteuid():
        print("not root: connections to fake pods go where this machine's routes say", file=sys.stderr)
        yield
        return
    subprocess.run(["ip", "route", "replace", *route], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "del", *route], check=False)
