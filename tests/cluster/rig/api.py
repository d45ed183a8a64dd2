"""Requests to the API server without kubectl. A start of kubectl costs a tenth of a second of CPU time, which the pods
lack: whatever a test asks again and again while it waits is asked this way.

    request("GET", "/api/v1/namespaces/default/pods", server=..., token=..., authority=...)   # the answer's text
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from .state import RigError

SECONDS = 60.0
"""In which a request is answered, or fails."""


class ApiError(RigError):
    """The API server's refusal; `code` is the HTTP status, 0 where there was no answer."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


def request(
    method: str, path: str, body: dict[str, Any] | None = None, *, server: str, token: str, authority: Path
) -> str:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{server}{path}", data=data, headers=headers, method=method)
    context = ssl.create_default_context(cafile=str(authority))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(asked, timeout=SECONDS) as reply:
            answer: bytes = reply.read()
            return answer.decode()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[-2000:]
        raise ApiError(f"{method} {path}: {error.code} {said}", error.code) from None
    except OSError as error:
        raise ApiError(f"{method} {path}: {error}") from None
