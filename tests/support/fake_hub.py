"""A stand-in for the model hub, with one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """As much of the hub's API as a snapshot needs: the commit of a revision, its files, their content."""

    repository: str
    """`models/org/name` or `datasets/org/name`."""
    files: dict[str, bytes]
    refuse: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer."""
    gated: bool = False
    """Whether files are for those with a token."""
    large: bool = False
    """Whether files are stored by git-lfs, with their sha256."""
    parts: bool = True
    """Whether it gives parts of files."""
    sent: int = 0
    """Bytes of files."""
    asked: list[str]
    given: list[str]
    """Names of files, each time that one is downloaded."""
    tokens: set[str | None]


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = f"/api/{self.server.repository}"
        files = f"/{self.server.repository.removeprefix('models/')}/resolve/{COMMIT}/"
        self.server.asked.append(path)
        if self.command == "GET" and path.startswith(files):
            self.server.given.append(path.removeprefix(files))
        self.server.tokens.add(self.headers.get("authorization"))
        if self.server.refuse:
            status, code = self.server.refuse
            self.reply(status, b"{}", {"X-Error-Code": code} if code else {})
        elif path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}", api):
            names = [self.described(name, data) for name, data in self.server.files.items()]
            self.reply(
                200,
                json.dumps({"id": self.server.repository.partition("/")[2], "sha": COMMIT, "siblings": names}).encode(),
            )
        elif path == f"{api}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files.items()
            ]
            self.reply(200, json.dumps(tree).encode())
        elif path.startswith(files) and self.server.gated and not self.headers.get("authorization"):
            self.reply(401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.startswith(files):
            data = self.server.files.get(path.removeprefix(files))
            if data is None:
                self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            status, headers = 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if self.server.parts and (wanted := self.headers.get("range")):
                start, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
                headers["Content-Range"] = f"bytes {start}-{last}/{len(data)}"
                status, data = 206, data[start : last + 1]
            self.server.sent += len(data) if self.command == "GET" else 0
            self.reply(status, data, headers)
        elif path.startswith(f"{api}/revision/"):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def described(self, name: str, data: bytes) -> dict[str, object]:
        found = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        lfs = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 1}
        return found | ({"lfs": lfs} if self.server.large else {})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@contextmanager
def serving(repository: str, files: Mapping[str, bytes]) -> Iterator[Hub]:
    with Hub(("127.0.0.1", 0), HubHandler) as hub:
        hub.repository, hub.files, hub.asked, hub.tokens = repository, dict(files), [], set()
        hub.given = []
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def environ(hub: Hub, token: str = "", *, section: str = "MODEL") -> dict[str, str]:
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        **({f"FINETUNE_{section}_HF_TOKEN": token} if token else {}),
    }
