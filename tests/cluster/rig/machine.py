"""What this machine lacks for a scope of the rig, in words that a skipped test can show. An empty list means: go
ahead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

from tests.support.chromium import NAMES as BROWSERS
from tests.support.chromium import browser

from . import build
from .process import bare_environment
from .state import Paths

Missing = list[str]
DEBIAN_PACKAGES = {  # what is looked for -> the package that has it
    "buildah": "buildah",  # builds the operator's image
    "Python.h": "python3-dev",  # training.compile compiles against it, by g++
    "chromium-headless-shell": "chromium-headless-shell",  # opens the report; any Chromium will do
    "g++": "g++",
    "gcc": "gcc",
    "ip": "iproute2",
    "libseccomp": "libseccomp-dev",
    "nft": "nftables",
    "openssl": "openssl",
    "pkg-config": "pkg-config",
}


def missing_for_control_plane(paths: Paths) -> Missing:
    """etcd, kube-apiserver and kube-controller-manager run as anybody; they need Linux, openssl, and Go or its
    fruits."""
    return _binaries(build.CONTROL_PLANE, paths) + _commands("openssl")


def missing_for_s3(paths: Paths) -> Missing:
    return _binaries(build.S3, paths)


def missing_for_kueue(paths: Paths) -> Missing:
    return missing_for_control_plane(paths) + _binaries(build.KUEUE, paths)


def missing_for_helm(paths: Paths) -> Missing:
    return _binaries(build.HELM, paths)


def missing_for_helm3(paths: Paths) -> Missing:
    return _binaries(build.HELM3, paths)


def missing_for_monitoring(paths: Paths) -> Missing:
    return _binaries(build.MONITORING, paths)


def missing_for_node(paths: Paths) -> Missing:
    """Pods that really run need root, cgroups that can be written, and a bridge."""
    lacking = missing_for_control_plane(paths) + missing_for_s3(paths) + _binaries(build.NODE, paths) + _commands("ip")
    if "runc" in build.missing(("runc",), paths):
        lacking += _commands("gcc", "pkg-config")
        if not _has_libseccomp():
            lacking.append(_install("libseccomp"))
    if os.geteuid() != 0:
        lacking.append("the node needs root")
    elif not _cgroups_writable():
        lacking.append("the node needs cgroups that it can write")
    return lacking


def has_nft() -> bool:
    """kube-proxy translates Service addresses with nft; without it only headless Services work, which gangs use."""
    return shutil.which("nft", path=bare_environment()["PATH"]) is not None


def install_debian_packages(*, say: Callable[[str], None] = print) -> None:
    """Installs what building and running need beyond Go, where this is Debian and we are root. Says what it does, or
    what a person can do instead. FINETUNE_NO_APT=1 leaves the machine as it is."""
    lacking = [package for command, package in DEBIAN_PACKAGES.items() if not _present(command)]
    if not lacking:
        return
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *lacking]
    obstacle = (
        "FINETUNE_NO_APT=1" if os.environ.get("FINETUNE_NO_APT") == "1"
        else "not on Debian" if not shutil.which("apt-get")
        else "not root" if os.geteuid() != 0
        else ""
    )  # fmt: skip
    if obstacle:
        command = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(lacking)}"
        needed = ", ".join(lacking)
        say(f"rig: tests with pods and a browser need {needed} ({obstacle}, so not installed). As root: {command}")
        return
    what = f"{', '.join(lacking)} for tests with pods and a browser"
    say(f"rig: installing {what}, about a minute (FINETUNE_NO_APT=1 prevents it)")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            say(f"rig: {' '.join(command)} failed:\n{done.stdout[-1000:]}")


def _binaries(names: tuple[str, ...], paths: Paths) -> Missing:
    lacking = build.missing(names, paths)
    if not lacking or shutil.which("go"):
        return []
    return [f"not built yet and no Go to build with: {', '.join(lacking)}"]


def _commands(*names: str) -> Missing:
    return [_install(name) for name in names if not _present(name)]


def _present(name: str) -> bool:
    if name == "libseccomp":
        return _has_libseccomp()
    if name == "Python.h":  # of the interpreter that runs the tests
        return (Path(sysconfig.get_path("include")) / name).exists()
    if name in BROWSERS:
        return browser() is not None
    return bool(shutil.which(name, path=bare_environment()["PATH"]))


def _install(name: str) -> str:
    return f"no {name} (Debian: apt-get install {DEBIAN_PACKAGES[name]}, or `python -m tests.cluster.rig build --apt`)"


def _has_libseccomp() -> bool:
    if not shutil.which("pkg-config"):
        return False
    return subprocess.run(["pkg-config", "--exists", "libseccomp"], check=False).returncode == 0


def _cgroups_writable() -> bool:
    root = Path("/sys/fs/cgroup")
    probe = (root / "memory" if (root / "memory").is_dir() else root) / f"rig-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True
