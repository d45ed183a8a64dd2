"""One request on its way through a FaultProxy: what it is, and what a fault may do with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import aiohttp
from aiohttp import web

VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
HOP_BY_HOP = frozenset(("connection", "transfer-encoding", "content-length", "host", "keep-alive"))


class Call(NamedTuple):
    """One request: `create jobs`, `update finetunejobs/status`, `watch pods`."""

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


class Wire(Protocol):
    """The way to the API server."""

    log: list[Entry]

    def upstream(self, exchange: Exchange) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]: ...

    async def relay(self, exchange: Exchange) -> web.StreamResponse: ...

    def outlive(self, work: Any) -> None:
        """It goes on when the client has gone."""


@dataclass
class Exchange:
    """One request on its way. A fault calls what it lets happen, in any order, or nothing."""

    call: Call
    request: web.Request
    wire: Wire
    reached: bool = False

    async def forward(self) -> web.StreamResponse:
        """To the API server, and its answer to the client."""
        return await self.wire.relay(self)

    async def swallow(self) -> int:
        """To the API server, and its answer to nobody. Returns the code."""
        async with self.wire.upstream(self) as answer:
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


def only(*calls: str) -> When:
    """`only("create jobs", "update finetunejobs/status")`."""
    return lambda call: str(call) in calls


def call_of(request: web.Request) -> Call:
    """`/apis/GROUP/VERSION/namespaces/NS/PLURAL/NAME/SUBRESOURCE`, or without the namespace."""
    parts = request.path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    plural, name, subresource = [*parts, "", "", ""][:3]
    reading = "watch" if request.query.get("watch") == "true" else "get" if name else "list"
    resource = f"{plural}/{subresource}" if subresource else plural
    return Call(VERBS.get(request.method, reading), resource, name, time.monotonic())


async def begin(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    return response


async def lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in answer.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
