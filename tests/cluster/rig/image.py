"""The hand-made images, as one docker-archive: no registry, no image builder.

docker.io/rig/pause:1   a pod's sandbox: one static program docker.io/rig/host:1    an empty root that repeats the
host's own top-level links (/bin -> usr/bin, ...), for pods whose
                        /usr and Python are the host's, mounted read-only (host_trees.py). Its user is 65532, not root.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterator
from pathlib import Path

PAUSE = "docker.io/rig/pause:1"
HOST = "docker.io/rig/host:1"
USER = 65532
ETC = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\nfinetune:x:{USER}:{USER}:finetune:/tmp:/bin/sh\n",
    "etc/group": f"root:x:0:\nfinetune:x:{USER}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
EMPTY_FOLDERS = ("tmp", "proc", "sys", "dev", "etc", "etc/ssl", "etc/ssl/certs", "usr", "opt", "home", "var", "run")
MAYBE_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def write_archive(target: Path, *, pause: Path, authority: Path) -> None:
    """Writes both images into `target`, ready for `ctr images import`. Pods trust the rig's `authority` and no
    other."""
    bundle = _file("etc/ssl/certs/ca-certificates.crt", authority.read_bytes(), mode=0o644)  # TLS clients want one
    root = _layer([*_folders_and_links(), *_texts(), bundle])
    program = _layer([_file("pause", pause.read_bytes(), mode=0o755)])
    images = ((PAUSE, [program], ["/pause"], "65535:65535"), (HOST, [root], None, f"{USER}:{USER}"))
    manifest = []
    with tarfile.open(target, "w") as archive:
        for layer in (root, program):
            _add(archive, _layer_name(layer), layer)
        for tag, layers, entrypoint, user in images:
            config = _config(layers, entrypoint=entrypoint, user=user)
            name = hashlib.sha256(config).hexdigest() + ".json"
            _add(archive, name, config)
            manifest.append({"Config": name, "RepoTags": [tag], "Layers": [_layer_name(layer) for layer in layers]})
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def host_links() -> dict[str, str]:
    """The host's top-level links into /usr; what is no link is a tree of its own."""
    return {name: str(Path("/", name).readlink()) for name in MAYBE_LINKS if Path("/", name).is_symlink()}


Entry = tuple[tarfile.TarInfo, bytes]


def _folders_and_links() -> Iterator[Entry]:
    links = host_links()
    for name in (*EMPTY_FOLDERS, *(name for name in MAYBE_LINKS if name not in links)):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        yield info, b""
    for name, aim in links.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, aim
        yield info, b""


def _texts() -> list[Entry]:
    return [_file(name, text.encode(), mode=0o644) for name, text in ETC.items()]


def _file(name: str, content: bytes, *, mode: int) -> Entry:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    return info, content


def _layer(entries: list[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for info, content in entries:
            layer.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _layer_name(layer: bytes) -> str:
    return hashlib.sha256(layer).hexdigest() + ".tar"


def _config(layers: list[bytes], *, entrypoint: list[str] | None, user: str) -> bytes:
    environment = ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp"]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Entrypoint": entrypoint, "Env": environment, "User": user},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]},
    }
    return json.dumps(config).encode()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
