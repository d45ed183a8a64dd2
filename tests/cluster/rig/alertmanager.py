"""A real Alertmanager and a receiver of its webhooks, for as long as a test needs them.

inbox = Inbox.open()
manager = Alertmanager.start(config, folder=tmp_path, paths=Paths())   # its webhooks go to inbox.url(NAME)
inbox.of("FineTuneJobStalled")      # [Notice(receiver="on-call", status="firing", labels={...}), ...]
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .process import Processes, Program
from .state import Paths, free_ports


@dataclass(frozen=True, kw_only=True)
class Alertmanager:
    """A running server on loopback, without peers."""

    address: str
    processes: Processes

    @staticmethod
    def start(config: dict[str, Any], *, folder: Path, paths: Paths) -> Alertmanager:
        """Starts a server whose data lie in `folder`. It refuses to start with a configuration that it cannot use."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "alertmanager.yaml").write_text(json.dumps(config, indent=1))
        address = f"127.0.0.1:{free_ports(1)[0]}"
        flags = {
            "config.file": str(folder / "alertmanager.yaml"),
            "storage.path": str(folder / "data"),
            "web.listen-address": address,
            "cluster.listen-address": "",
            "log.level": "warn",
        }
        argv = (str(paths.bin / "alertmanager"), *(f"--{name}={value}" for name, value in flags.items()))
        program = Program(name="alertmanager", argv=argv, probe=f"http://{address}/-/ready")
        return Alertmanager(address=address, processes=Processes.of(program, state=folder, wait=60))

    def stop(self) -> None:
        self.processes.stop("alertmanager")


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One alert of one notification."""

    receiver: str
    status: str
    labels: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Inbox:
    """What webhooks brought, in order."""

    server: ThreadingHTTPServer
    notices: list[Notice] = field(default_factory=list)

    @staticmethod
    def open() -> Inbox:
        notices: list[Notice] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in body["alerts"]:
                    notices.append(
                        Notice(receiver=self.path.strip("/"), status=alert["status"], labels=alert["labels"])
                    )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """pytest shows what matters."""

        inbox = Inbox(server=ThreadingHTTPServer(("127.0.0.1", 0), Handler), notices=notices)
        threading.Thread(target=inbox.server.serve_forever, daemon=True).start()
        return inbox

    def url(self, receiver: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{receiver}"

    def of(self, alert: str) -> list[Notice]:
        return [notice for notice in self.notices if notice.labels["alertname"] == alert]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
