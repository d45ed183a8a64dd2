"""An S3 server (MinIO) of a test's own on loopback: start, kill and start again on one port and folder."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.rig.s3 import S3
from tests.cluster.rig.state import cache_dir

MINIO = cache_dir() / "bin" / "minio"
MISSING = f"there is no {MINIO}: `python -m tests.cluster.rig build minio`"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    folder: Path
    key: str = "finetune-test"
    secret: str = field(default_factory=lambda: "CANARY" + secrets.token_hex(12))
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def s3(self) -> S3:
        return S3(endpoint=self.endpoint, key=self.key, secret=self.secret)

    def start(self) -> None:
        environ = {"HOME": str(self.folder), "MINIO_ROOT_USER": self.key, "MINIO_ROOT_PASSWORD": self.secret}
        environ |= {"MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}
        address = f"127.0.0.1:{self.port}"
        argv = [str(MINIO), "server", str(self.folder / "data"), "--address", address, "--quiet"]
        with (self.folder / "minio.log").open("ab") as log:
            self.process = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)
        for _ in range(600):
            try:
                self.s3.bucket("ready")  # its health page says yes before it takes requests
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"MinIO did not start: {(self.folder / 'minio.log').read_text()[-2000:]}")

    def is_sent_parts(self) -> bool:
        """Of a file that is not whole yet."""
        multipart = self.folder / "data" / ".minio.sys" / "multipart"
        return any(name.startswith("part.") for _, _, names in os.walk(multipart) for name in names)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
