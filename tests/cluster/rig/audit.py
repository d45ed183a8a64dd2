"""Who asked the API server for what: its audit log (metadata only), read from a mark on.

mark = rig.audit.mark()
...                                    # the operator works
rig.audit.writes("system:serviceaccount:finetune-system:finetune-operator", since=mark)
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITE_VERBS = frozenset(("create", "update", "patch", "delete", "deletecollection"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One finished request."""

    user: str
    verb: str
    resource: str  # "jobs", "finetunejobs/status"
    namespace: str
    name: str
    code: int
    user_agent: str
    allowed: bool
    """By RBAC; a quota or an admission policy may refuse it all the same."""


@dataclass(frozen=True, kw_only=True)
class AuditLog:
    """The log of one API server; `poke` sends it a request for a named thing that does not exist."""

    path: Path
    poke: Callable[[str], object]

    def mark(self) -> int:
        """The place from which a later question counts."""
        self._settle()
        return self.path.stat().st_size

    def requests(self, *, since: int = 0, user: str | None = None) -> list[Request]:
        """Finished requests in order, of one user or of all."""
        self._settle()
        with self.path.open("rb") as log:
            log.seek(since)
            found = [_request(json.loads(line)) for line in log if line.endswith(b"\n")]
        return [
            request for request in found if user in (None, request.user) and not request.name.startswith("rig-mark-")
        ]

    def writes(self, user: str, *, since: int = 0) -> Counter[str]:
        """How often the user wrote, by `verb resource`: Counter({'update finetunejobs/status': 3, 'create jobs':
        1})."""
        made = self.requests(since=since, user=user)
        return Counter(f"{request.verb} {request.resource}" for request in made if request.verb in WRITE_VERBS)

    def _settle(self) -> None:
        """Returns when everything that was answered before is in the file: a marked request comes through it last."""
        name = f"rig-mark-{secrets.token_hex(4)}"
        before = self.path.stat().st_size if self.path.exists() else 0
        self.poke(name)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with self.path.open("rb") as log:
                log.seek(before)
                if name.encode() in log.read():
                    return
            time.sleep(0.02)
        raise TimeoutError(f"the API server's audit log {self.path} does not move")


def _request(event: dict[str, Any]) -> Request:
    target = event.get("objectRef") or {}
    subresource = target.get("subresource")
    return Request(
        user=event.get("user", {}).get("username", ""),
        verb=event.get("verb", ""),
        resource=target.get("resource", "") + (f"/{subresource}" if subresource else ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=int(event.get("responseStatus", {}).get("code", 0)),
        user_agent=event.get("userAgent", ""),
        allowed=event.get("annotations", {}).get("authorization.k8s.io/decision") == "allow",
    )
