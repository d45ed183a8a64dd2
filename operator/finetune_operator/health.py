"""/metrics, /healthz and /readyz, from a thread of their own (see finetune_api.pages): neither do they wait for the
operator's work, nor does that wait for a page.

Ready: the cache holds everything. Healthy: the event loop turns, every watch was answered and every waiting job was
looked at within the last minutes; what fails this for longer than the probe allows is helped by a restart.

/metrics is rendered once for all that ask for it, at most for a tenth of the time. It may require a token, and all
three may be served over TLS; both are read again when their files change.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from finetune_api import pages
from finetune_api.pages import TEXT, Page, Route

from . import exposition

OLDEST_WATCH = 300.0
OLDEST_KEY = 300.0
OLDEST_TURN = 60.0

SHORTEST, LONGEST, SHARE = 1.0, 15.0, 10.0
"""Seconds for which a page of metrics is shown again, and how many times as long as it took to make it."""

Check = Callable[[], str]
"""What is wrong; empty if nothing is."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Who may read the pages, and how. None: every client, without TLS."""

    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    """Of a file with the bearer token that /metrics requires."""


@dataclass(eq=False)
class Running:
    addresses: list[tuple[str, int]]
    tls: ssl.SSLContext | None
    guard: Guard
    _stack: contextlib.ExitStack
    _seen: tuple[float, float] = field(default=(0.0, 0.0))

    def __post_init__(self) -> None:
        self._seen = self._changed()

    async def cleanup(self) -> None:
        await asyncio.to_thread(self._stack.close)

    def renew(self) -> None:
        """Takes up another certificate, if there is one. OSError if it cannot be read; the one before stays then."""
        if self.tls is not None and (now := self._changed()) != self._seen:
            _load(self.tls, self.guard)
            self._seen = now

    def _changed(self) -> tuple[float, float]:
        files = (self.guard.certificate, self.guard.key)
        first, second = (file.stat().st_mtime if file is not None else 0.0 for file in files)
        return first, second


async def serve(
    address: str, *, registry: CollectorRegistry, healthy: Check, ready: Check, guard: Guard | None = None
) -> Running:
    """Listen at `host:port` until what is returned is cleaned up. OSError if the port is taken, or for a certificate or
    token that cannot be read."""
    guard = guard or Guard()
    context = None
    if guard.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load(context, guard)
    if guard.token is not None:
        guard.token.read_text()
    routes = {
        "/metrics": Route(
            lambda: Page(CONTENT_TYPE_LATEST, exposition.text(registry)),
            token=None if guard.token is None else lambda: _read(guard.token),
            keep=lambda took: min(LONGEST, max(SHORTEST, SHARE * took)),
        ),
        "/healthz": Route(lambda: _page(healthy())),
        "/readyz": Route(lambda: _page(ready())),
    }
    host, _, port = address.rpartition(":")
    stack = contextlib.ExitStack()
    found = stack.enter_context(pages.serving(host.strip("[]") or None, int(port), routes, tls=context))
    return Running([(host.strip("[]"), found)], context, guard, stack)


def _load(context: ssl.SSLContext, guard: Guard) -> None:
    assert guard.certificate is not None
    context.load_cert_chain(guard.certificate, guard.key)


def _read(file: Path | None) -> str:
    """Empty, which no request can match, while there is none."""
    try:
        return file.read_text().strip() if file else ""
    except OSError:
        return ""


def _page(wrong: str) -> Page:
    return Page(TEXT, (wrong or "ok").encode(), 503 if wrong else 200)
