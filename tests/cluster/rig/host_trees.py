"""The stand-in for an image's content: no image can be built where these tests run, so containers of the all but empty
image `docker.io/rig/host:1` run the host's own programs, mounted read-only.

In a real cluster the code is in the image and nothing of this exists. Here each tree (/usr, the interpreter, the
checkout with its .venv, the model cache) is a hostPath PersistentVolume, read-only, with one claim in the test's
namespace: pods of a `restricted` namespace may not mount hostPath, but may use any claim. Every tree appears in the
container at the path that it has on the host: a venv's python is a link to its interpreter, and the editable install
names the checkout, by path. A tree under a home directory of mode 700 works too, since the container's own parents of
the mount point are 755.

    trees = host_trees(checkout)
    apply_host_trees(rig, namespace, trees)
    job["spec"]["pod"] = {"volumes": job_volumes(trees)}          # a FineTuneJob
    pod["spec"] = restricted_pod(trees, [python, ...])            # a pod by hand
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import image
from .state import NotOursError

if TYPE_CHECKING:
    from .rig import Manifest, Rig

IMAGE = image.HOST


@dataclass(frozen=True, kw_only=True)
class HostTree:
    """A folder of the host that pods see, read-only, at the same path."""

    path: str

    @property
    def claim(self) -> str:
        """The claim's name, also the volume's: /usr -> host-usr."""
        return "host-" + re.sub(r"[^a-z0-9]+", "-", self.path.lower()).strip("-")[-50:].strip("-")


def host_trees(checkout: Path, *, models: Path | None = None, more: Iterable[Path] = ()) -> tuple[HostTree, ...]:
    """What it takes to run `checkout/.venv/bin/python`: the system, the interpreter, the venv, the checkout, the
    models.

    A tree inside another one is not mounted twice. `models` is mounted where it is, too; point HF_HOME or the like at
    it."""
    venv = checkout / ".venv"
    wanted = [Path("/usr"), *(Path("/", name) for name in image.MAYBE_LINKS if _is_folder_of_its_own(name))]
    wanted += [_interpreter(venv), checkout, venv.resolve(), *([models] if models else []), *more]
    paths = sorted({Path(os.path.abspath(path)) for path in wanted}, key=lambda path: len(path.parts))
    kept: list[Path] = []
    for path in paths:
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return tuple(HostTree(path=str(path)) for path in kept)


def manifests(trees: Sequence[HostTree], *, namespace: str, owner: Manifest | None = None) -> list[Manifest]:
    """A volume and a claim for each tree, bound to each other beforehand. With `owner` (the namespace's object) the
    volumes, which have no namespace, go when the namespace goes."""
    made: list[Manifest] = []
    for tree in trees:
        name = f"{namespace}-{tree.claim}"
        size, modes = {"storage": "1Gi"}, ["ReadOnlyMany"]
        references = {"ownerReferences": [_reference(owner)]} if owner else {}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, **references},
            "spec": {
                "capacity": size,
                "accessModes": modes,
                "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace, "name": tree.claim},
                "hostPath": {"path": tree.path, "type": "Directory"},
            },
        }
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": tree.claim, "namespace": namespace},
            "spec": {
                "accessModes": modes,
                "storageClassName": "",
                "volumeName": name,
                "resources": {"requests": size},
            },
        }
        made += [volume, claim]
    return made


def apply_host_trees(rig: Rig, namespace: str, trees: Sequence[HostTree]) -> None:
    """Makes the volumes and claims in the namespace and returns when all are bound."""
    if rig.external:
        raise NotOursError("an external cluster's nodes do not see this machine's folders")
    owner = rig.get("namespace", namespace)
    rig.apply(manifests(trees, namespace=namespace, owner=owner))
    claims = [f"pvc/{tree.claim}" for tree in trees]
    rig.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "--timeout=180s", "-n", namespace, *claims)


def job_volumes(trees: Sequence[HostTree]) -> list[dict[str, Any]]:
    """A FineTuneJob's `spec.pod.volumes`."""
    return [
        {
            "name": tree.claim,
            "mountPath": tree.path,
            "readOnly": True,
            "persistentVolumeClaim": {"claimName": tree.claim},
        }
        for tree in trees
    ]


def pod_volumes(trees: Sequence[HostTree]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A pod's `volumes` and its container's `volumeMounts`."""
    mounts = [{"name": tree.claim, "mountPath": tree.path, "readOnly": True} for tree in trees]
    return [_volume(tree) for tree in trees], mounts


def restricted_pod(
    trees: Sequence[HostTree], command: list[str], *, env: dict[str, str] | None = None
) -> dict[str, Any]:
    """A pod spec as the `restricted` level wants it: the host's trees, /tmp, and the ConfigMap `code` at /code."""
    volumes, mounts = pod_volumes(trees)
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [*volumes, {"name": "tmp", "emptyDir": {}}, {"name": "code", "configMap": {"name": "code"}}],
        "containers": [
            {
                "name": "node",
                "image": IMAGE,
                "command": command,
                "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
                "volumeMounts": [
                    *mounts,
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "code", "mountPath": "/code", "readOnly": True},
                ],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }


def _volume(tree: HostTree) -> dict[str, Any]:
    return {"name": tree.claim, "persistentVolumeClaim": {"claimName": tree.claim, "readOnly": True}}


def _reference(owner: Manifest) -> dict[str, Any]:
    name, uid = owner["metadata"]["name"], owner["metadata"]["uid"]
    return {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name, "uid": uid}


def _interpreter(venv: Path) -> Path:
    """The prefix of the Python that the venv was made of; pyvenv.cfg names its bin folder."""
    for line in (venv / "pyvenv.cfg").read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "home":
            return Path(value.strip()).parent
    return Path(sys.base_prefix)


def _is_folder_of_its_own(name: str) -> bool:
    """Whether the host has /NAME as a folder; a link, such as /lib -> usr/lib, is in the image already."""
    return Path("/", name).is_dir() and not Path("/", name).is_symlink()
