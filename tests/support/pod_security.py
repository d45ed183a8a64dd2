"""The `restricted` Pod Security Standard as a list of what breaks it, written from the standard's page and not from our
objects. https://kubernetes.io/docs/concepts/security/pod-security-standards/"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
SECCOMP = ("RuntimeDefault", "Localhost")
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip


def violations(template: dict[str, Any]) -> Iterator[str]:
    """Of a pod, or of a pod template: metadata and spec."""
    spec = template["spec"]
    for key, value in (template.get("metadata", {}).get("annotations") or {}).items():
        if key.startswith(APPARMOR) and value != "runtime/default" and not value.startswith("localhost/"):
            yield f"AppArmor: {key}"
    yield from (f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))
    if spec.get("hostUsers") is False and spec.get("os", {}).get("name") == "windows":
        yield "hostUsers"
    for volume in spec.get("volumes", ()):
        yield from (f"volume of kind {kind}" for kind in volume.keys() - {"name"} - VOLUMES)
    pod = spec.get("securityContext") or {}
    yield from _context(pod, "pod")
    yield from (f"sysctl {each.get('name')}" for each in pod.get("sysctls", ()) if each.get("name") not in SYSCTLS)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind, ()):
            yield from _container(container, pod)


def _container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext") or {}
    yield from _context(own, "container")
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "privilege escalation is allowed"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
        yield "may run as root"
    if (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in SECCOMP:
        yield "seccomp"
    yield from ("a host port" for port in container.get("ports", ()) if port.get("hostPort"))
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        for action in (container.get(probe) or {}).values():
            if isinstance(action, dict) and action.get("host"):
                yield f"{probe} of another host"


def _context(context: dict[str, Any], where: str) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield f"{where}: user 0"
    if context.get("runAsNonRoot") is False:
        yield f"{where}: runAsNonRoot is false"
    if (context.get("seccompProfile") or {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield f"{where}: seccomp"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield f"{where}: AppArmor"
    linux = context.get("seLinuxOptions") or {}
    if linux.get("user") or linux.get("role") or linux.get("type", "") not in ("", "container_t", "container_init_t"):
        yield f"{where}: SELinux"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{where}: hostProcess"
