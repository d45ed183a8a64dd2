"""Where a rig's things lie, and what it drew when it was made: ports, tokens, keys. One JSON file, readable by its
owner."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ACTORS = {  # one user for each program, so that the audit log tells them apart: name -> groups
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "system:node:rig": "system:nodes",
    "rig:dns": "system:masters",
    "rig:proxy": "system:masters",
    "rig:tests": "system:masters",
}
PORTS = (
    "etcd",
    "etcd_peer",
    "apiserver",
    "minio",
    "proxy_health",
    "proxy_metrics",
    "kubelet_health",
    "dns_ready",
    "kueue_health",
    "kueue_webhook",
)


class RigError(RuntimeError):
    """Something of the rig did not do what was asked; the message says where to look."""


class NotOursError(RigError):
    """Asked of an external cluster what only a rig of our own can do; tests that ask are skipped."""


PORT_RANGE = range(20000, 32000)
"""Of servers on loopback."""


def port_range() -> range:
    """The ports of FINETUNE_RIG_PORTS=20000-25999, else all. Rigs that start at the same time could choose the same:
    each is given a share."""
    first, _, last = os.environ.get("FINETUNE_RIG_PORTS", f"{PORT_RANGE.start}-{PORT_RANGE.stop - 1}").partition("-")
    return range(int(first), int(last) + 1)


def shares(ports: range, count: int) -> list[range]:
    """The ports in `count` equal ranges: shares(range(20000, 20010), 2) is [20000-20004, 20005-20009]."""
    size = len(ports) // count
    return [ports[number * size : (number + 1) * size] for number in range(count)]


def cache_dir() -> Path:
    """The project's cache: FINETUNE_CACHE, else ~/.cache/finetune-operator."""
    return Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator").absolute()


def state_dir() -> Path:
    """FINETUNE_RIG_DIR, else `rig` in the cache, else (a unix socket's path may hold 108 bytes) a short one in
    /tmp."""
    if chosen := os.environ.get("FINETUNE_RIG_DIR"):
        return Path(chosen).absolute()
    preferred = cache_dir() / "rig"
    if len(str(preferred)) <= 60:
        return preferred
    mark = hashlib.sha256(str(preferred).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"rig-{os.getuid()}-{mark}"


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Folders of the programs (shared by all rigs of a cache) and of one rig's state."""

    cache: Path = field(default_factory=cache_dir)
    state: Path = field(default_factory=state_dir)

    @property
    def bin(self) -> Path:
        return self.cache / "bin"

    @property
    def modules(self) -> Path:
        return self.cache / "go"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.jsonl"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "ctd" / "c.sock"

    def kubeconfig(self, actor: str) -> Path:
        return self.state / "kubeconfig" / f"{actor.replace(':', '-')}.yaml"


@dataclass(frozen=True, kw_only=True)
class State:
    """What stays the same while a rig's state exists, across restarts of its programs."""

    ports: dict[str, int]
    tokens: dict[str, str]
    s3_key: str
    s3_secret: str
    features: str = ""
    runtime_config: str = ""
    kept: bool = False  # a developer started it with `up`: sessions leave it running
    node_kept: bool = False  # and its node, with `up --node`

    @staticmethod
    def draw(*, kept: bool) -> State:
        """New ports and secrets. FINETUNE_RIG_FEATURES and FINETUNE_RIG_RUNTIME_CONFIG switch Kubernetes features
        on."""
        ports = free_ports(len(PORTS))
        return State(
            ports=dict(zip(PORTS, ports, strict=True)),
            tokens={actor: secrets.token_hex(16) for actor in ACTORS},
            s3_key="rigadmin",
            s3_secret=secrets.token_hex(16),
            features=os.environ.get("FINETUNE_RIG_FEATURES", ""),
            runtime_config=os.environ.get("FINETUNE_RIG_RUNTIME_CONFIG", ""),
            kept=kept,
        )

    @staticmethod
    def load(paths: Paths) -> State | None:
        try:
            state = State(**json.loads((paths.state / "rig.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        for name in PORTS:  # a rig of an older checkout may lack some
            state.ports.setdefault(name, free_ports(1)[0])
        return state

    def save(self, paths: Paths) -> None:
        write_private(paths.state / "rig.json", json.dumps(dataclasses.asdict(self), indent=1))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside the range from which the kernel hands out clients' ports.

    A port from the kernel's own range could be some client's by the time that its server is restarted.
    """
    ports = port_range()
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(ports)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def free_loopback(port: int) -> str:
    """A loopback address on which nobody listens at the port, for a server whose port is fixed."""
    while True:
        address = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((address, port))
            return address


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner reads, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file: starting, stopping and building happen one at a time on a machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
