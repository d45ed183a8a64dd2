"""A node on which pods really run: bridge, containerd, kubelet, scheduler, CoreDNS, kube-proxy and S3. Needs root.

Everything listens on the bridge's own address or on loopback. What the machine had before is put back at the stop: no
process, mount, bridge, control group or packet rule stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import image, machine, node_config
from .control_plane import SERVICE_NETWORK
from .node_config import BRIDGE, NODE
from .pki import BRIDGE_ADDRESS
from .process import Processes, Program, command_lines, run
from .state import Paths, RigError, State, write_private

if TYPE_CHECKING:
    from .rig import Rig

API_PORT = 6443  # on the bridge, for pods
STOP_ORDER = ("proxy", "kubelet", "scheduler", "dns", "door")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
KUBERNETES_ENDPOINT = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": [BRIDGE_ADDRESS], "conditions": {"ready": True}}],
    "ports": [{"name": "https", "port": API_PORT, "protocol": "TCP"}],
}


def start(rig: Rig) -> None:
    """Starts what does not run yet and returns when the node is Ready. The control plane runs already."""
    paths, state, processes = rig.paths, rig.state, rig.processes
    if state is None or processes is None:
        raise RigError("an external cluster brings its own nodes")
    _bridge_up(paths)
    processes.start(_containerd(paths), wait=180)
    _import_images(paths)
    processes.start(_door(state))
    processes.start(_dns(paths, state))
    processes.start(_kubelet(paths, state))
    processes.start(scheduler(paths, state))
    if machine.has_nft():
        processes.start(_proxy(paths, state))
    rig.apply(KUBERNETES_ENDPOINT)
    _ = rig.s3  # on the bridge from now on
    condition = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    processes.wait_for(
        "kubelet",
        lambda: rig.kubectl("get", "node", NODE, "--ignore-not-found", "-o", condition) == "True",
        seconds=180,
    )
    processes.start(_dns(paths, state), wait=180)


def stop(paths: Paths, processes: Processes) -> None:
    """Stops the node's programs and every container, and puts back what the machine had. Harmless without a node."""
    for name in STOP_ORDER:
        processes.stop(name)
    if not (paths.state / "ctd").exists():
        return
    if processes.pid("containerd"):
        _end_containers(paths)
    processes.stop("containerd")
    _end_shims(paths)
    for mount in mounts_below(paths.state):
        run("umount", "-l", mount, check=False)
    shutil.rmtree(paths.state / "cni" / "ipam", ignore_errors=True)
    _bridge_down(paths)
    _remove_empty_control_groups()


def mounts_below(folder: Path) -> list[str]:
    """Mount points in the folder, the innermost first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def _bridge_up(paths: Paths) -> None:
    (paths.state / "cni").mkdir(exist_ok=True)
    mark = paths.state / "ip_forward"  # the bridge plugin turns forwarding on; the stop puts it back
    if Path("/sys/class/net", BRIDGE).exists() and not mark.exists():
        raise RigError(f"the bridge {BRIDGE} is there already and is not this rig's: one node a machine")
    if not mark.exists():
        mark.write_text(FORWARDING.read_text())
    if not Path("/sys/class/net", BRIDGE).exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "replace", f"{BRIDGE_ADDRESS}/16", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    run("ip", "route", "replace", SERVICE_NETWORK, "dev", BRIDGE)  # an untranslated Service address stays inside
    write_private(paths.state / "cni" / "10-rig.conflist", node_config.network(paths))


def _bridge_down(paths: Paths) -> None:
    mark = paths.state / "ip_forward"
    if not mark.exists():
        return
    if machine.has_nft():
        for family in ("ip", "ip6"):
            run("nft", "delete", "table", family, "kube-proxy", check=False)
    run("ip", "link", "del", BRIDGE, check=False)
    FORWARDING.write_text(mark.read_text())
    mark.unlink()


def _containerd(paths: Paths) -> Program:
    config = paths.state / "ctd" / "config.toml"
    write_private(config, node_config.containerd(paths))
    return Program(
        name="containerd",
        argv=(str(paths.bin / "containerd"), "-c", str(config)),
        env={"PATH": f"{paths.bin}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},  # it looks its shim up there
        probe=f"unix:{paths.containerd_socket}",
    )


def _import_images(paths: Paths) -> None:
    archive = paths.state / "ctd" / "images.tar"
    if not archive.exists():
        new = archive.with_suffix(".new")
        image.write_archive(new, pause=paths.bin / "pause", authority=paths.pki / "ca.crt")
        run(*_ctr(paths), "images", "import", new)
        new.rename(archive)  # it says from now on that the images are there


def import_image(paths: Paths, archive: Path, *, repository: str) -> None:
    patience = 120 + archive.stat().st_size / 2**22  # unpacked while others have the disk and the processors, too
    run(*_ctr(paths), "images", "import", "--base-name", repository, archive, timeout=patience)


def _door(state: State) -> Program:
    forward = str(Path(__file__).with_name("forward.py"))
    source, target = f"{BRIDGE_ADDRESS}:{API_PORT}", f"127.0.0.1:{state.ports['apiserver']}"
    return Program(name="door", argv=(sys.executable, "-S", forward, source, target))


def _dns(paths: Paths, state: State) -> Program:
    config = paths.state / "Corefile"
    write_private(config, node_config.dns(paths, state))
    return Program(
        name="dns",
        argv=(str(paths.bin / "coredns"), "-conf", str(config)),
        probe=f"http://127.0.0.1:{state.ports['dns_ready']}/ready",
    )


def _kubelet(paths: Paths, state: State) -> Program:
    config = paths.state / "kubelet" / "config.json"
    write_private(config, node_config.kubelet(paths, state))
    flags = {
        "kubeconfig": str(paths.kubeconfig(f"system:node:{NODE}")),
        "config": str(config),
        "root-dir": str(paths.state / "kubelet" / "root"),
        "cert-dir": str(paths.state / "kubelet" / "pki"),
        "hostname-override": NODE,
        "node-ip": BRIDGE_ADDRESS,
    }
    if state.features:
        flags["feature-gates"] = state.features
    return Program(
        name="kubelet",
        argv=(str(paths.bin / "kube"), "kubelet", *(f"--{name}={value}" for name, value in flags.items())),
        probe=f"http://127.0.0.1:{state.ports['kubelet_health']}/healthz",
    )


def scheduler(paths: Paths, state: State) -> Program:
    kubeconfig = paths.kubeconfig("system:kube-scheduler")
    words = [f"--kubeconfig={kubeconfig}", "--secure-port=0", "--leader-elect=false"]
    words += ["--kube-api-qps=500", "--kube-api-burst=1000"]
    if state.features:
        words.append(f"--feature-gates={state.features}")
    return Program(name="scheduler", argv=(str(paths.bin / "kube"), "kube-scheduler", *words))


def _proxy(paths: Paths, state: State) -> Program:
    config = paths.state / "proxy.json"
    write_private(config, node_config.proxy(paths, state))
    return Program(name="proxy", argv=(str(paths.bin / "kube"), "kube-proxy", f"--config={config}"))


def _ctr(paths: Paths) -> tuple[str, ...]:
    return (str(paths.bin / "ctr"), "-a", str(paths.containerd_socket), "-n", "k8s.io")


def _end_containers(paths: Paths) -> None:
    for kind, remove in (("tasks", ("delete", "-f")), ("containers", ("rm",))):
        for name in run(*_ctr(paths), kind, "ls", "-q", check=False, timeout=20).split():
            run(*_ctr(paths), kind, *remove, name, check=False, timeout=20)


def _end_shims(paths: Paths) -> None:
    """Only those that name this rig's own socket."""
    for pid, words in command_lines():
        if words and words[0].endswith("containerd-shim-runc-v2") and str(paths.containerd_socket) in words:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _remove_empty_control_groups() -> None:
    for pods in [*Path("/sys/fs/cgroup").glob("kubepods"), *Path("/sys/fs/cgroup").glob("*/kubepods")]:
        for folder, _, _ in os.walk(pods, topdown=False):
            with contextlib.suppress(OSError):  # one in use cannot be removed
                Path(folder).rmdir()
