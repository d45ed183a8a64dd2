"""A proxy in front of the real API server: one client's network, with everything that goes wrong in networks.

    with FaultProxy.before(rig) as proxy:
        kubeconfig = rig.service_account_kubeconfig("system", "operator", server=proxy.address)
        proxy.inject(refuse(500), times=20)                    # the next 20 requests
        proxy.inject(lose_answer(), when=writes, times=3)      # made, but the client never learns it
        proxy.inject(stall(), when=watches)                    # until `proxy.heal()`
        proxy.cut(); proxy.mend()                              # no connection stands, none is taken

It speaks plain HTTP to the client (a token is all that a client shows) and HTTPS to the API server. Each request is in
`log`, with what the client was told; `writes()` counts those that reached the API server and changed something.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from tests.cluster.rig import Rig

VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
HOP_BY_HOP = frozenset(("connection", "transfer-encoding", "content-length", "host", "keep-alive"))


class Call(NamedTuple):
    """One request: `create jobs`, `patch finetunejobs/status`, `watch pods`."""

    verb: str
    resource: str
    name: str = ""
    at: float = 0.0
    """Monotonic seconds."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


@dataclass(frozen=True)
class Entry:
    call: Call
    code: int
    """What the client was told; 0: nothing."""
    reached: bool
    """The API server got it."""


@dataclass
class Exchange:
    """One request on its way. A fault calls what it lets happen, in any order, or nothing."""

    call: Call
    request: web.Request
    proxy: FaultProxy
    reached: bool = False

    async def forward(self) -> web.StreamResponse:
        """To the API server, and its answer to the client."""
        return await self.proxy._relay(self)

    async def swallow(self) -> int:
        """To the API server, and its answer to nobody. Returns the code."""
        async with self.proxy._upstream(self) as answer:
            await answer.read()
            return answer.status

    def reset(self) -> web.StreamResponse:
        """The connection breaks."""
        transport = self.request.transport
        if transport is not None:
            transport.abort()
        raise ConnectionResetError


Fault = Callable[[Exchange], Awaitable[web.StreamResponse]]
When = Callable[[Call], bool]


def anything(call: Call) -> bool:
    return True


def watches(call: Call) -> bool:
    return call.verb == "watch"


def writes(call: Call) -> bool:
    return call.verb in VERBS.values()


def reads(call: Call) -> bool:
    return not writes(call)


def only(*calls: str) -> When:
    """`only("create jobs", "patch finetunejobs/status")`."""
    return lambda call: str(call) in calls


# what may happen to a request


def refuse(code: int, *, reason: str = "", retry_after: int | None = None, message: str = "by the proxy") -> Fault:
    """The API server never sees it."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    async def refuse(exchange: Exchange) -> web.StreamResponse:
        return web.json_response(status | {"message": message}, status=code, headers=headers)

    return refuse


def lose_answer(code: int = 0) -> Fault:
    """The API server does it; the client is told `code`, or sees the connection break."""

    async def lose(exchange: Exchange) -> web.StreamResponse:
        await exchange.swallow()
        return await refuse(code)(exchange) if code else exchange.reset()

    return lose


def reset() -> Fault:
    async def reset(exchange: Exchange) -> web.StreamResponse:
        return exchange.reset()

    return reset


def slow(seconds: float) -> Fault:
    async def slow(exchange: Exchange) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await exchange.forward()

    return slow


def hold(until: threading.Event) -> Fault:
    """The request lies in the network, and arrives whether its client still lives or not."""

    async def deliver(exchange: Exchange) -> None:
        while not until.is_set():
            await asyncio.sleep(0.02)
        code = await exchange.swallow()
        exchange.proxy.log.append(Entry(exchange.call, code, reached=True))

    async def hold(exchange: Exchange) -> web.StreamResponse:
        await exchange.request.read()  # all of it is on its way; its sender may go
        exchange.proxy._outlive(deliver(exchange))
        await asyncio.sleep(3600)
        raise AssertionError("nobody waits so long")

    return hold


# what may happen to a watch


def _events(change: Callable[[bytes], AsyncIterator[bytes]]) -> Fault:
    async def watch(exchange: Exchange) -> web.StreamResponse:
        async with exchange.proxy._upstream(exchange) as answer:
            response = await _begin(exchange.request, answer)
            async for line in _lines(answer):
                async for each in change(line):
                    await response.write(each)
            return response

    return watch


def drop_after(events: int) -> Fault:
    """The watch breaks after so many events."""

    async def watch(exchange: Exchange) -> web.StreamResponse:
        left = events
        async with exchange.proxy._upstream(exchange) as answer:
            response = await _begin(exchange.request, answer)
            async for line in _lines(answer):
                if not left:
                    return exchange.reset()
                left -= 1
                await response.write(line)
            return response

    return watch


def stall() -> Fault:
    """The watch stays open, and nothing comes."""

    async def watch(exchange: Exchange) -> web.StreamResponse:
        async with exchange.proxy._upstream(exchange) as answer:
            await _begin(exchange.request, answer)
            await asyncio.sleep(3600)
        raise AssertionError("nobody waits so long")

    return watch


def gone() -> Fault:
    """The history that the watch asks for is no longer there: told within the stream, as the API server does it."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"}
    line = json.dumps({"type": "ERROR", "object": status | {"message": "too old resource version"}}).encode() + b"\n"

    async def watch(exchange: Exchange) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(exchange.request)
        await response.write(line)
        return response

    return watch


def duplicate() -> Fault:
    """Each event three times."""

    async def thrice(line: bytes) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield line

    return _events(thrice)


def late(seconds: float) -> Fault:
    """Each event so much later."""

    async def later(line: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(seconds)
        yield line

    return _events(later)


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
    refused_connections: int = 0

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

    def _outlive(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        call = _call(request)
        self.calls.append(call)
        exchange = Exchange(call, request, self)
        transport = request.transport
        if transport is None or self._cut:
            self.refused_connections += 1
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
    async def _upstream(self, exchange: Exchange) -> AsyncIterator[aiohttp.ClientResponse]:
        request = exchange.request
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        body = await request.read() or None
        url = f"{self.server}{request.raw_path}"
        timeout = aiohttp.ClientTimeout(total=None)
        exchange.reached = True
        async with self._session.request(request.method, url, headers=headers, data=body, timeout=timeout) as answer:
            yield answer

    async def _relay(self, exchange: Exchange) -> web.StreamResponse:
        async with self._upstream(exchange) as answer:
            response = await _begin(exchange.request, answer)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


async def _begin(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    return response


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _call(request: web.Request) -> Call:
    """`/apis/GROUP/VERSION/namespaces/NS/PLURAL/NAME/SUBRESOURCE`, or without the namespace."""
    parts = request.path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    plural, name, subresource = [*parts, "", "", ""][:3]
    reading = "watch" if request.query.get("watch") == "true" else "get" if name else "list"
    resource = f"{plural}/{subresource}" if subresource else plural
    return Call(VERBS.get(request.method, reading), resource, name, time.monotonic())


@contextlib.contextmanager
def passing(proxy: FaultProxy, fault: Fault, *, when: When = anything) -> Iterator[None]:
    """The fault, for as long as the block."""
    proxy.inject(fault, when=when)
    try:
        yield
    finally:
        proxy.heal()
