"""The table of programs and how each is built, once, into the cache: one line adds a program.

Everything comes from the Go module proxy at a fixed version. Each program is built in a small module of its own (some
programs need versions that others cannot have), or in its own folder beside this file. A `NAME.version` file beside
each binary says what it is; a binary whose file says the same as the table is left alone."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .state import Paths, RigError, locked

HERE = Path(__file__).parent
KUBERNETES = "v1.36.3"


class BuildError(RigError):
    """A program could not be built."""


@dataclass(frozen=True, kw_only=True)
class Binary:
    """One program of the table: a package at a version, or (`source`) a folder beside this file."""

    name: str  # the file's path under bin/
    package: str = "."
    version: str = ""
    module: str = ""  # programs that name the same module share its versions
    source: str = ""
    cgo: bool = False
    tags: str = ""
    ldflags: str = ""
    files: str = ""  # a folder of its module (CRDs, say) that is kept beside it as NAME.files

    def stamp(self) -> str:
        """What the version file says when the binary is up to date."""
        if not self.source:
            return " ".join(filter(None, (f"{self.package}@{self.version}", self.tags, self.files)))
        digest = hashlib.sha256(self.ldflags.encode())
        for file in sorted((HERE / self.source).iterdir()):
            digest.update(file.read_bytes())
        return f"{self.source} {self.version} {digest.hexdigest()[:12]}".strip()


def _kube_version() -> str:
    package, (major, minor, _) = "k8s.io/component-base/version", KUBERNETES.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return " ".join(f"-X {package}.{name}={value}" for name, value in values.items())


def _helm3() -> str:
    """What its releases are built with: without this it takes itself for a Helm of Kubernetes 1.20."""
    _, minor, _ = KUBERNETES.split(".")
    values = {f"{package}.k8sVersion{part}": number for package in ("pkg/chartutil", "pkg/lint/rules")
              for part, number in (("Major", "1"), ("Minor", minor))}  # fmt: skip
    return " ".join(f"-X helm.sh/helm/v3/{name}={value}" for name, value in values.items())


_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_CNI = "github.com/containernetworking/plugins/plugins"
_PROMETHEUS = "github.com/prometheus/prometheus/cmd"
_KUBERNETES_DISCOVERY = "remove_all_sd enable_kubernetes_sd"

TABLE: tuple[Binary, ...] = (
    Binary(name="etcd", package="go.etcd.io/etcd/server/v3", version="v3.6.15"),
    Binary(name="kube", source="kube", version=KUBERNETES, ldflags=_kube_version()),
    Binary(name="pause", source="pause"),
    Binary(name="runc", package="github.com/opencontainers/runc", version="v1.3.4", cgo=True, tags="seccomp",
           ldflags="-X main.version=1.3.4"),
    Binary(name="containerd", package=f"{_CONTAINERD}/containerd", version="v2.2.9", module="containerd",
           tags="no_btrfs no_devmapper no_zfs"),
    Binary(name="containerd-shim-runc-v2", package=f"{_CONTAINERD}/containerd-shim-runc-v2", version="v2.2.9",
           module="containerd"),
    Binary(name="ctr", package=f"{_CONTAINERD}/ctr", version="v2.2.9", module="containerd"),
    Binary(name="cni/bridge", package=f"{_CNI}/main/bridge", version="v1.8.0", module="cni"),
    Binary(name="cni/loopback", package=f"{_CNI}/main/loopback", version="v1.8.0", module="cni"),
    Binary(name="cni/host-local", package=f"{_CNI}/ipam/host-local", version="v1.8.0", module="cni"),
    Binary(name="coredns", source="dns"),
    Binary(name="minio", package="github.com/minio/minio", version="v0.0.0-20260212201848-7aac2a2c5b7c"),
    Binary(name="prometheus", package=f"{_PROMETHEUS}/prometheus", version="v0.316.0", module="prometheus",
           tags=_KUBERNETES_DISCOVERY),
    Binary(name="promtool", package=f"{_PROMETHEUS}/promtool", version="v0.316.0", module="prometheus",
           tags=_KUBERNETES_DISCOVERY),
    Binary(name="alertmanager", package="github.com/prometheus/alertmanager/cmd/alertmanager", version="v0.31.1"),
    Binary(name="kwok", package="sigs.k8s.io/kwok/cmd/kwok", version="v0.7.0"),
    Binary(name="kueue", package="sigs.k8s.io/kueue/cmd/kueue", version="v0.19.0", files="config/components"),
    Binary(name="helm", package="helm.sh/helm/v4/cmd/helm", version="v4.2.4", module="helm"),
    Binary(name="helm3", package="helm.sh/helm/v3/cmd/helm", version="v3.20.2", module="helm", ldflags=_helm3()),
    Binary(name="trainer", package="github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager", version="v2.3.0"),
    Binary(name="jobset", package="sigs.k8s.io/jobset", version="v0.12.0"),
)  # fmt: skip
BINARIES = {binary.name: binary for binary in TABLE}
CPU_SECONDS = {
    "etcd": 90, "kube": 600, "runc": 40, "containerd": 150, "coredns": 12, "minio": 240, "kueue": 405, "helm": 200,
    "prometheus": 260, "alertmanager": 120,
}  # fmt: skip
"""About what a build takes with an empty Go cache, on a 2-core EPYC; the others take seconds."""

CONTROL_PLANE = ("etcd", "kube")
S3 = ("minio",)
KUEUE = ("kueue",)
HELM = ("helm",)
HELM3 = ("helm3",)
MONITORING = ("prometheus", "promtool", "alertmanager")
NODE = ("pause", "runc", "containerd", "containerd-shim-runc-v2", "ctr", "cni/bridge", "cni/loopback", "cni/host-local",
        "coredns")  # fmt: skip
EVERYTHING = (
    CONTROL_PLANE + NODE + S3 + KUEUE + HELM + HELM3 + MONITORING
)  # the rest of the table is built when somebody asks
FAKE_NODES = ("kwok",)
RIVAL = ("trainer", "jobset")  # Kubeflow Trainer and JobSet, which tests/benchmarks/operator runs beside ours


def missing(names: Iterable[str], paths: Paths) -> list[str]:
    """Those of the named programs that the cache lacks, or holds in another version."""
    return [name for name in names if _found(paths.bin / name) != BINARIES[name].stamp()]


def build(names: Iterable[str], paths: Paths, *, say: Callable[[str], None] = print) -> None:
    """Builds what is missing, one program after the other, and says how long each took."""
    for name in missing(tuple(names), paths):
        with locked(paths.cache / "build.lock"):  # one program at a time, whoever builds: two would only be slower
            if missing((name,), paths):
                began, used = time.monotonic(), _cpu_seconds()
                say(f"rig: building {name} {BINARIES[name].version}".rstrip())
                _build(BINARIES[name], paths)
                size = (paths.bin / name).stat().st_size // 1_000_000
                seconds, used = time.monotonic() - began, _cpu_seconds() - used
                say(f"rig: {name} took {seconds:.0f} s, {used:.0f} s of CPU time, {size} MB")


def _cpu_seconds() -> float:
    """What the processes that were waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _build(binary: Binary, paths: Paths) -> None:
    if not shutil.which("go"):
        raise BuildError(f"{binary.name} must be built, and there is no Go (1.26 or later) on this machine")
    out = paths.bin / binary.name
    out.parent.mkdir(parents=True, exist_ok=True)
    if binary.source:
        folder = HERE / binary.source
    else:
        folder = paths.modules / (binary.module or binary.name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "go.mod").exists():
            _go("mod", "init", f"rig.local/{folder.name}", folder=folder)
        _go("get", f"{binary.package}@{binary.version}", folder=folder)
    new = out.with_name(f".{out.name}.new")  # a running program's file cannot be written, but it can be replaced
    flags = ("-trimpath", "-tags", binary.tags, "-ldflags", f"-s -w {binary.ldflags}", "-o", str(new))
    _go("build", *flags, binary.package, folder=folder, cgo=binary.cgo)
    new.replace(out)
    if binary.files:
        root = _go("list", "-f", "{{.Module.Dir}}", binary.package, folder=folder).strip()
        kept = out.with_name(f"{out.name}.files")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(Path(root) / binary.files, kept, copy_function=shutil.copyfile)
        kept.chmod(0o755)
    out.with_name(f"{out.name}.version").write_text(binary.stamp() + "\n")


def _go(*words: str, folder: Path, cgo: bool = False) -> str:
    env = {**os.environ, "CGO_ENABLED": "1" if cgo else "0", "GOWORK": "off"}
    command = ["nice", "-n", "5", "go", *words]
    done = subprocess.run(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise BuildError(f"go {' '.join(words)} failed in {folder}:\n{done.stdout[-3000:]}")
    return done.stdout


def _found(binary: Path) -> str | None:
    try:
        return binary.with_name(f"{binary.name}.version").read_text().strip() if os.access(binary, os.X_OK) else None
    except OSError:
        return None


def say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
