"""A small HTTP server for the pages of agent and operator, which untrusted clients cannot block for other clients.

It runs in its own thread with its own event loop, so that pages and the work of the process do not delay each other. A
connection serves one GET request. New connections are always accepted, and replace others if a limit is reached:

    idle       a request must be complete one second after its connection was opened
    one peer   has at most eight connections; a new one closes its oldest
    all peers  have at most 64; a new one closes the oldest idle one, otherwise the oldest without a valid token
    a token    keeps its connection until the response is sent, regardless of new connections

Concurrent requests share one rendered page. It is sent in chunks, so that slow clients do not hold copies of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hmac
import http.client
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from .sockets import bound

if TYPE_CHECKING:
    import ssl

ENDING_SECONDS = 5.0
"""Time for open connections to end. A machine that needs longer does not fail the process that stops serving."""
HEAD_BYTES = 8192
PIECE = 64 * 1024
COMPRESSED_FROM = 64 * 1024
"""Minimum size of pages that are compressed, in bytes."""

TEXT = "text/plain; charset=utf-8"


class Page(NamedTuple):
    kind: str
    """The Content-Type."""
    body: bytes
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class Limits:
    head_seconds: float = 1.0
    answer_seconds: float = 10.0
    """Time for a client to receive the whole response."""
    each: int = 8
    total: int = 64


@dataclass(frozen=True)
class Route:
    make: Callable[[], Page]
    """Called in a thread; exceptions result in status 500."""
    token: Callable[[], str] | None = None
    """Expected bearer token; None: no authentication."""
    keep: Callable[[float], float] = lambda _: 0.0
    """Returns the lifetime of a page in seconds, given the seconds that it took to render it."""


@dataclass(eq=False)
class _Kept:
    route: Route
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    page: Page | None = None
    compressed: bytes = b""
    made: float = 0.0
    until: float = 0.0

    async def get(self, pool: ThreadPoolExecutor) -> Page:
        """Requests that waited while the page was rendered get the new page."""
        asked = time.monotonic()
        async with self.lock:
            if self.page is None or (self.made < asked and self.until <= time.monotonic()):
                await asyncio.get_running_loop().run_in_executor(pool, self._make)
            assert self.page is not None
            return self.page

    def _make(self) -> None:
        start = time.monotonic()
        page = self.route.make()
        self.compressed = gzip.compress(page.body, 1) if len(page.body) >= COMPRESSED_FROM else b""
        self.page, self.made = page, time.monotonic()
        self.until = self.made + self.route.keep(self.made - start)


@dataclass(eq=False)
class _Connection:
    peer: str
    transport: asyncio.Transport
    idle: bool = True
    trusted: bool = False
    task: asyncio.Future[None] | None = None
    """asyncio keeps no other reference to it."""
    shaking: bool = False
    """It is in its TLS handshake."""


@dataclass(eq=False)
class _Server:
    routes: Mapping[str, Route]
    limits: Limits
    pool: ThreadPoolExecutor
    tls: ssl.SSLContext | None = None
    open: dict[_Connection, None] = field(default_factory=dict)
    """Open connections, oldest first."""

    def __post_init__(self) -> None:
        self.kept = {path: _Kept(route) for path, route in self.routes.items()}

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection counts from here on, before its TLS handshake, so that handshakes are limited as well."""
        peer = writer.get_extra_info("peername") or ("",)
        connection = _Connection(str(peer[0]), writer.transport)  # type: ignore[arg-type]
        if not self._enter(connection):
            writer.transport.abort()
            return
        if self.tls is not None:
            connection.shaking = True
            connection.transport.pause_reading()  # what the client sends first is for the handshake
        connection.task = asyncio.ensure_future(self._serve(connection, reader, writer))

    async def _serve(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.tls is not None:
                await writer.start_tls(self.tls, ssl_handshake_timeout=self.limits.head_seconds)
                connection.shaking = False
            async with asyncio.timeout(self.limits.head_seconds):
                head = await reader.readuntil(b"\r\n\r\n")
            connection.idle = False
            async with asyncio.timeout(self.limits.answer_seconds):
                await self._answer(connection, head, writer)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            connection.shaking = False
            self._end(connection)

    def _enter(self, new: _Connection) -> bool:
        """Returns False if the limit is reached and every connection has a valid token."""
        own = [each for each in self.open if each.peer == new.peer and not each.trusted]
        if len(own) >= self.limits.each:
            self._end(_oldest(own))
        elif len(self.open) >= self.limits.total:
            strangers = [each for each in self.open if not each.trusted]
            if not strangers:
                return False
            self._end(_oldest(strangers))
        self.open[new] = None
        return True

    def _end(self, connection: _Connection) -> None:
        self.open.pop(connection, None)
        if connection.shaking and connection.task is not None:
            connection.task.cancel()  # asyncio takes a connection that is aborted for a handshake that is done
        connection.transport.abort()

    async def _answer(self, connection: _Connection, head: bytes, writer: asyncio.StreamWriter) -> None:
        method, path, headers = _parsed(head)
        kept = self.kept.get(path.partition("?")[0])
        if method != "GET":
            page = _plain(HTTPStatus.METHOD_NOT_ALLOWED if method else HTTPStatus.BAD_REQUEST)
        elif kept is None:
            page = _plain(HTTPStatus.NOT_FOUND)
        elif kept.route.token is not None and not _shows(headers, kept.route.token()):
            page = _plain(HTTPStatus.UNAUTHORIZED)
        else:
            connection.trusted = kept.route.token is not None
            try:
                page = await kept.get(self.pool)
            except Exception:
                page = _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        packed = kept.compressed if kept is not None and page is kept.page else b""
        packed = packed if "gzip" in headers.get("accept-encoding", "") else b""
        await _send(writer, page, packed)


def _oldest(connections: list[_Connection]) -> _Connection:
    """Returns the oldest idle connection, otherwise the oldest one."""
    return next((each for each in connections if each.idle), connections[0])


def _parsed(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Returns method, path and headers; an empty method if the request is not HTTP."""
    line, _, rest = head.partition(b"\r\n")
    words = line.decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return "", "", {}
    try:
        headers = http.client.parse_headers(io.BytesIO(rest))
    except http.client.HTTPException:
        return "", "", {}
    return words[0], words[1], {name.lower(): value for name, value in headers.items()}


def _shows(headers: Mapping[str, str], token: str) -> bool:
    """Compares the bearer token. An empty token never matches."""
    shown = headers.get("authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(shown.encode(), token.encode())


def _plain(status: HTTPStatus) -> Page:
    return Page(TEXT, f"{status.value} {status.phrase}\n".encode(), status.value)


async def _send(writer: asyncio.StreamWriter, page: Page, packed: bytes) -> None:
    body = memoryview(packed or page.body)
    lines = [f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}", f"Content-Type: {page.kind}"]
    lines += [f"Content-Length: {len(body)}", "Connection: close", *(["Content-Encoding: gzip"] if packed else [])]
    if page.status == HTTPStatus.UNAUTHORIZED:
        lines.append("WWW-Authenticate: Bearer")
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    for start in range(0, len(body), PIECE):
        writer.write(body[start : start + PIECE])
        await writer.drain()


@contextlib.contextmanager
def serving(
    address: str | None,
    port: int,
    routes: Mapping[str, Route],
    *,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """Serves the routes while the block runs, and yields the port. Listens on IPv4 and IPv6 if no address is given.
    Raises OSError if it cannot listen there."""
    limits, listener = limits or Limits(), bound(address or "", port)
    loop, pool = asyncio.new_event_loop(), ThreadPoolExecutor(max(1, len(routes)), thread_name_prefix="page")
    loop.set_exception_handler(lambda *_: None)  # what strangers send is nothing that a log should hold
    server = _Server(routes, limits, pool, tls)
    thread = threading.Thread(target=loop.run_forever, name="pages", daemon=True)
    thread.start()
    opening = asyncio.start_server(server.accept, sock=listener, limit=HEAD_BYTES, backlog=512)
    try:
        try:
            opened = asyncio.run_coroutine_threadsafe(opening, loop).result()
        except OSError as error:  # asyncio puts the address into it, and writes it in its own way
            if error.errno is None or error.errno < 0:
                raise
            raise OSError(error.errno, os.strerror(error.errno)) from error
        try:
            yield opened.sockets[0].getsockname()[1]
        finally:
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(_end(opened), loop).result(ENDING_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(ENDING_SECONDS)
        pool.shutdown(wait=False, cancel_futures=True)
        if not thread.is_alive():
            loop.close()


async def _end(opened: asyncio.Server) -> None:
    opened.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
