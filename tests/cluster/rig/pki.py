"""Certificates (by the openssl program), tokens and kubeconfigs. Secrets are drawn for each rig and readable by its
owner."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from .process import run
from .state import ACTORS, Paths, State, write_private

SERVICE_ADDRESS = "10.96.0.1"  # the `kubernetes` Service
BRIDGE_ADDRESS = "10.244.0.1"
NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


def make(paths: Paths, state: State) -> None:
    """The authority, the API server's certificate, its client certificate for kubelets, and the tokens' file. Once."""
    folder = paths.pki
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", folder / "sa.key")
    run("openssl", "ec", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")
    run(
        "openssl",
        "req",
        "-x509",
        *key,
        "-days",
        "365",
        "-subj",
        "/CN=rig-ca",
        "-keyout",
        folder / "ca.key",
        "-out",
        folder / "ca.crt",
    )
    addresses = ",".join(f"IP:{address}" for address in ("127.0.0.1", BRIDGE_ADDRESS, SERVICE_ADDRESS))
    issue(folder, "api", "/CN=rig-apiserver", names=addresses + "," + ",".join(f"DNS:{name}" for name in NAMES))
    issue(folder, "kubelet-client", "/O=system:masters/CN=rig-apiserver")
    rows = [f'{state.tokens[user]},{user},{user},"{groups}"' for user, groups in ACTORS.items()]
    write_private(folder / "tokens.csv", "\n".join(rows) + "\n")
    (folder / "done").touch()


def issue(folder: Path, name: str, subject: str, *, names: str = "") -> None:
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\n" if names else "extendedKeyUsage=clientAuth\n")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("openssl", "req", *key, "-subj", subject, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr")
    signer = ("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "365")
    run(
        "openssl",
        "x509",
        "-req",
        "-in",
        folder / f"{name}.csr",
        *signer,
        "-out",
        folder / f"{name}.crt",
        "-extfile",
        extensions,
    )


def write_kubeconfig(
    path: Path, *, server: str, authority: bytes, user: str, token: str, namespace: str = "default"
) -> Path:
    """A kubeconfig with everything inside, so that it can be copied or mounted anywhere (JSON is YAML)."""
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(authority).decode()}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "rig", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": user, "namespace": namespace}}],
        "current-context": "rig",
    }
    write_private(path, json.dumps(config, indent=1))
    return path
