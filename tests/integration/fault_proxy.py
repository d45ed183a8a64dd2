"""A proxy in front of the real API server: one client's network, with everything that goes wrong in networks.

    with FaultProxy.before(rig) as proxy:
        kubeconfig = rig.service_account_kubeconfig("system", "operator", server=proxy.address)
        proxy.inject(refuse(500), times=20)                    # the next 20 requests
        proxy.inject(lose_answer(), when=writes, times=3)      # made, but the client never learns it
        proxy.inject(stall(), when=watches)                    # until `proxy.heal()`
        proxy.cut(); proxy.mend()                              # no connection stands, none is taken

What may happen is in faults, and to which requests in exchange. It speaks plain HTTP to the client (a token is all that
a client shows) and HTTPS to the API server. Each request is in `log`, with what the client was told; `writes()` counts
those that reached the API server and changed something.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web

from tests.cluster.rig import Rig
from tests.integration.exchange import HOP_BY_HOP, Call, Entry, Exchange, Fault, When, anything, begin, call_of, writes


@dataclass
class _Rule:
    fault: Fault
    when: When
    times: int | None
    """How often still; None: always."""


@dataclass(eq=False)
class FaultProxy:
    """Runs in a thread of its own from `__enter__` to `__exit__`."""

    server: str
    tls: ssl.SSLContext | None
    log: list[Entry] = field(default_factory=list)
    """In the order of the answers; open watches are not in it yet."""
    calls: list[Call] = field(default_factory=list)
    """In the order of the requests."""
    _rules: list[_Rule] = field(default_factory=list)
    _open: set[asyncio.Transport] = field(default_factory=set)
    _cut: bool = False

    @staticmethod
    def before(rig: Rig) -> FaultProxy:
        config = json.loads(rig.kubectl("config", "view", "--minify", "--flatten", "--raw", "-o", "json"))
        authority = base64.b64decode(config["clusters"][0]["cluster"].get("certificate-authority-data", "")).decode()
        tls = ssl.create_default_context(cadata=authority) if rig.server.startswith("https") else None
        return FaultProxy(rig.server, tls)

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    # what tests do

    def inject(self, fault: Fault, *, when: When = anything, times: int | None = None) -> None:
        """From now on; the first rule that fits and is not used up decides."""
        self._rules.append(_Rule(fault, when, times))

    def heal(self) -> None:
        """All faults end; watches under one break, so that the client may open better ones."""
        self._rules.clear()
        self._loop.call_soon_threadsafe(self._abort)

    def drop(self) -> None:
        """All connections break; the faults stay."""
        self._loop.call_soon_threadsafe(self._abort)

    def forget(self) -> None:
        """The log begins anew."""
        self.log.clear()
        self.calls.clear()

    def cut(self) -> None:
        """The client reaches nobody."""
        self._cut = True
        self._loop.call_soon_threadsafe(self._abort)

    def mend(self) -> None:
        self._cut = False

    def writes(self) -> Counter[str]:
        """What reached the API server and was done, by `verb resource`."""
        done = (entry for entry in list(self.log) if entry.reached and (entry.code < 400 or not entry.code))
        return Counter(str(entry.call) for entry in done if writes(entry.call))

    def most_per_second(self, *, since: float = 0.0) -> int:
        """Requests and connections in the busiest second."""
        times = sorted(call.at for call in list(self.calls) if call.at >= since)
        return max((sum(1 for t in times if start <= t < start + 1) for start in times), default=0)

    # how it works

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=self.tls if self.tls is not None else True)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, read_bufsize=2**20)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener).start()
        self._held: set[asyncio.Task[None]] = set()

    async def _stop(self) -> None:
        self._abort()
        for task in self._held:
            task.cancel()
        await self._runner.cleanup()
        await self._session.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for each in rest:
            each.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _abort(self) -> None:
        for transport in tuple(self._open):
            transport.abort()

    def outlive(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        call = call_of(request)
        self.calls.append(call)
        exchange = Exchange(call, request, self)
        transport = request.transport
        if transport is None or self._cut:
            return exchange.reset()
        self._open.add(transport)
        code = 0
        try:
            response = await self._fault(call)(exchange)
            code = response.status
            return response
        except aiohttp.ClientError:  # the API server is away
            return exchange.reset()
        finally:
            self._open.discard(transport)
            self.log.append(Entry(call, code, exchange.reached))

    def _fault(self, call: Call) -> Fault:
        for rule in self._rules:
            if rule.times != 0 and rule.when(call):
                rule.times = None if rule.times is None else rule.times - 1
                return rule.fault
        return Exchange.forward

    @contextlib.asynccontextmanager
    async def upstream(self, exchange: Exchange) -> AsyncIterator[aiohttp.ClientResponse]:
        request = exchange.request
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        body = await request.read() or None
        url = f"{self.server}{request.raw_path}"
        timeout = aiohttp.ClientTimeout(total=None)
        exchange.reached = True
        async with self._session.request(request.method, url, headers=headers, data=body, timeout=timeout) as answer:
            yield answer

    async def relay(self, exchange: Exchange) -> web.StreamResponse:
        async with self.upstream(exchange) as answer:
            response = await begin(exchange.request, answer)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
