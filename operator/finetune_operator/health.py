"""/metrics, /healthz and /readyz.

Ready: the cache holds everything. Healthy: every watch was answered and every waiting job was looked at within the last
minutes; what fails this for longer than the probe allows is helped by a restart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

OLDEST_WATCH = 300.0
OLDEST_KEY = 300.0

Check = Callable[[], str]
"""What is wrong; empty if nothing is."""


async def serve(address: str, *, registry: CollectorRegistry, healthy: Check, ready: Check) -> web.AppRunner:
    """Listen at `host:port` until the runner that is returned is cleaned up. OSError if the port is taken."""
    app = web.Application()
    app.router.add_get("/metrics", _metrics(registry))
    app.router.add_get("/healthz", _answer(healthy))
    app.router.add_get("/readyz", _answer(ready))
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    return runner


Handler = Callable[[web.Request], Awaitable[web.Response]]


def _metrics(registry: CollectorRegistry) -> Handler:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return metrics


def _answer(check: Check) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        wrong = check()
        return web.Response(text=wrong or "ok", status=503 if wrong else 200)

    return answer
