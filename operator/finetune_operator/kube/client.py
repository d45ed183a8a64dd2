"""Requests to the API server: a small protocol, and its implementation on one aiohttp session.

Objects are plain dicts. Children are created and never replaced: their names are deterministic, so a repeated creation
finds its own work. A status is replaced as a whole, which costs the API server a sixth less than to apply or patch it.

Errors are typed. A request that the API server did not answer, or answered with 429 or 5xx, is repeated a few times
with jitter (a repeated creation then meets AlreadyExists, a repeated deletion NotFound); what remains is raised, and
the queue's longer back-off takes over. While nothing is answered any more, `Calm` holds all requests of all jobs back
together, so that an outage costs the same few requests a second with one job and with five thousand.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

import aiohttp
import orjson
from yarl import URL

from finetune_api.names import FIELD_MANAGER
from finetune_api.text import clean

from .json_depth import loads
from .resources import EVENTS, FINETUNEJOBS, Key, Raw, Resource

INACTIVITY = 70.0
"""Seconds without an event or a bookmark (these come every minute) after which a watch counts as dead."""

WATCH_SECONDS = 120
"""After which a watch is renewed: so often at least the API server has to answer."""

TRIES = 3
FIRST_PAUSE = 0.2
REQUEST_SECONDS = 30.0
PAGE = 50
"""Objects of a list that are read at a time: each may have a MiB and more."""
MOST_EVENTS = 200
"""Of one object, that are read."""
MESSAGE = 4000
"""Characters kept of what the API server says: it repeats values of objects, which have any length."""
PAGE_BYTES = 4 * 2**20
"""A page that is longer is asked for again, with fewer objects: parsed, it takes up to twenty times as much."""

IN_A_ROW = 16
"""Pages that were not too long, after which twice as many objects are asked for: a few long objects do not make the
rest of a list slow."""


class ApiError(Exception):
    """An answer of the API server that is not a success."""

    def __init__(
        self, message: str, *, status: int = 0, retry_after: float = 0.0, fields: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.fields = fields
        """Which fields of the object the server names as causes; an empty name for a cause without one."""
        self.retry_after = retry_after
        """Seconds that the server asks us to wait."""


class NotFound(ApiError): ...


class AlreadyExists(ApiError): ...


class Conflict(ApiError): ...


class Gone(ApiError): ...


class Invalid(ApiError):
    """400 or 422: the object breaks a rule of the API server's, or of an admission controller: see
    diagnosis.api_rejections."""


class Forbidden(ApiError):
    """RBAC, a quota or an admission policy says no."""


class TooLong(ApiError):
    """A page of a list that does not fit into memory: ask for a smaller one."""


class Unauthorized(ApiError): ...


class TooManyRequests(ApiError): ...


class Unavailable(ApiError):
    """No answer, or 5xx."""


PASSING = (Unavailable, TooManyRequests)


class Calm:
    """How many requests may be under way while none of them is answered.

    After `TROUBLE` failures in a row, of whatever requests, two at a time, each after a pause that grows to
    `LONGEST_PAUSE` seconds; after the first answer all continue."""

    TROUBLE = 8
    LONGEST_PAUSE = 4.0

    def __init__(self) -> None:
        self._failures = 0
        self._narrow = asyncio.Semaphore(2)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._narrow if self._failures >= self.TROUBLE else contextlib.nullcontext():
            over = self._failures - self.TROUBLE
            if over >= 0:
                await asyncio.sleep(min(self.LONGEST_PAUSE, 0.25 * 2 ** min(over, 8)) * random.uniform(0.5, 1.0))
            try:
                yield
            except PASSING:
                self._failures += 1
                raise
            except ApiError:
                self._failures = 0
                raise
            else:
                self._failures = 0


@dataclass(frozen=True)
class Listing:
    items: list[Raw]
    version: str
    """resourceVersion of the list as a whole."""


class WatchEvent(NamedTuple):
    kind: str
    """ADDED, MODIFIED, DELETED, BOOKMARK; OPEN, without an object, when the watch has begun."""
    raw: Raw | None


class Client(Protocol):
    """What the operator asks of the API server. `writes` are the calls that change something."""

    async def list(
        self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = ""
    ) -> Listing: ...

    async def get(self, resource: Resource, key: Key) -> Raw: ...

    async def create(self, resource: Resource, body: Raw) -> Raw: ...

    async def replace_status(self, body: Raw) -> Raw: ...

    async def merge(self, resource: Resource, key: Key, body: Raw) -> Raw: ...

    async def replace(self, resource: Resource, body: Raw) -> Raw: ...

    async def delete(self, resource: Resource, key: Key, *, uid: str) -> Raw | None: ...


class HttpClient:
    """The protocol over HTTP. Not `patient`: each request is tried once, and at once, whatever happened to others."""

    def __init__(self, session: aiohttp.ClientSession, server: str, *, patient: bool = True) -> None:
        self._session = session
        self._server = server
        self._tries = TRIES if patient else 1
        self._turn = Calm().turn if patient else contextlib.nullcontext

    async def list(self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "") -> Listing:
        """All pages. Gone (410) means that the list expired between two pages: start again."""
        items: list[Raw] = []
        version = "0"
        async for page in self.pages(resource, namespace, selector=selector, fields=fields):
            items += page.items
            version = page.version
            if resource is EVENTS and len(items) >= MOST_EVENTS:
                break  # people who may write events may write any number
        return Listing(items, version)

    async def pages(
        self, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = "", size: int = PAGE
    ) -> AsyncIterator[Listing]:
        """The same, one page at a time: thousands of objects need not be in memory together."""
        query = {"limit": str(size), "labelSelector": selector or resource.selector, "fieldSelector": fields}
        limit, in_a_row = size, 0
        while True:
            query["limit"] = str(limit)
            try:
                page = await self._request(
                    "GET", resource.path(namespace), query=query, most=None if limit == 1 else PAGE_BYTES
                )
            except TooLong:
                limit, in_a_row = max(1, limit // 4), 0
                continue
            in_a_row += 1
            if in_a_row == IN_A_ROW:
                limit, in_a_row = min(size, 2 * limit), 0
            yield Listing(page.get("items", []), page["metadata"].get("resourceVersion", "0"))
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return

    async def watch(self, resource: Resource, namespace: str | None, version: int) -> AsyncIterator[WatchEvent]:
        """What happens after `version`, until the server ends the watch. Gone, if its history begins later."""
        query = {
            "watch": "true",
            "resourceVersion": str(version),
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "labelSelector": resource.selector,
        }
        url = self._url(resource.path(namespace), query)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=INACTIVITY)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                if response.status >= 300:
                    raise _error(response.status, await response.read(), response.headers.get("Retry-After", ""))
                yield WatchEvent("OPEN", None)
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        told = orjson.loads(line)
                        if told["type"] == "ERROR":
                            raise _error(told["object"].get("code", 0), orjson.dumps(told["object"]), "")
                        yield WatchEvent(told["type"], told["object"])
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            raise Unavailable(f"{url.path}: {error or type(error).__name__}") from error

    async def get(self, resource: Resource, key: Key) -> Raw:
        return await self._request("GET", resource.path(*key))

    async def create(self, resource: Resource, body: Raw) -> Raw:
        """Raises AlreadyExists, Invalid, Forbidden."""
        path = resource.path(body["metadata"]["namespace"])
        return await self._request("POST", path, body=body, query={"fieldManager": FIELD_MANAGER})

    async def replace_status(self, body: Raw) -> Raw:
        """A FineTuneJob's whole status; the API server keeps spec and metadata as they are, whatever the body says of
        them. Conflict: it is another object by now, or no longer the version of the body's resourceVersion."""
        meta = body["metadata"]
        path = FINETUNEJOBS.path(meta["namespace"], meta["name"], "status")
        return await self._request("PUT", path, body={**body, "spec": {}}, query={"fieldManager": FIELD_MANAGER})

    async def merge(self, resource: Resource, key: Key, body: Raw) -> Raw:
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request(
            "PATCH", resource.path(*key), body=body, query=query, content="application/merge-patch+json"
        )

    async def replace(self, resource: Resource, body: Raw) -> Raw:
        """Conflict, if it is no longer what its resourceVersion says."""
        meta = body["metadata"]
        return await self._request("PUT", resource.path(meta["namespace"], meta["name"]), body=body)

    async def delete(self, resource: Resource, key: Key, *, uid: str) -> Raw | None:
        """In the foreground: the object stays, marked as deleting, until all that it owns is gone.

        Returns the object as it is then; None when it was gone already, or when another one has the name."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": uid},
        }
        try:
            answer = await self._request("DELETE", resource.path(*key), body=body)
        except (NotFound, Conflict):
            return None
        return answer if answer.get("kind") == resource.kind else None

    async def discover(self, path: str) -> Raw:
        """What is served below a path of the API server. NotFound, if nothing is."""
        return await self._request("GET", path)

    async def ask(self, path: str, body: Raw) -> Raw:
        """A request that is made by a creation and stores nothing."""
        return await self._request("POST", path, body=body)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Raw | None = None,
        query: dict[str, str] | None = None,
        content: str = "",
        most: int | None = None,
    ) -> Raw:
        """TooLong for an answer of more than `most` bytes, which is not read to its end."""
        url = self._url(path, query)
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": content or "application/json"} if data is not None else {}
        for remaining in reversed(range(self._tries)):
            try:
                async with self._turn():
                    return await self._once(method, url, data, headers, most)
            except PASSING as error:
                if not remaining:
                    raise
                pause = FIRST_PAUSE * 2 ** (TRIES - 1 - remaining) * random.uniform(0.5, 1.5)
                if error.retry_after > REQUEST_SECONDS:
                    raise
                await asyncio.sleep(max(pause, error.retry_after))
        raise AssertionError("the last try returns or raises")

    def _url(self, path: str, query: dict[str, str] | None) -> URL:
        given = urlencode({name: value for name, value in query.items() if value}) if query else ""
        return URL(f"{self._server}{path}?{given}" if given else f"{self._server}{path}", encoded=True)

    async def _once(self, method: str, url: URL, data: bytes | None, headers: dict[str, str], most: int | None) -> Raw:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        try:
            async with self._session.request(method, url, data=data, headers=headers, timeout=timeout) as response:
                text = await (response.read() if most is None else _at_most(most, response))
                if response.status < 300:
                    answer: Raw = loads(text)
                    return answer
                raise _error(response.status, text, response.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
            raise Unavailable(f"{method} {url.path}: {error or type(error).__name__}") from error


async def _at_most(most: int, response: aiohttp.ClientResponse) -> bytes:
    pieces, length = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise TooLong(f"an answer of more than {most} bytes")
    return b"".join(pieces)


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def _error(status: int, text: bytes, retry_after: str) -> ApiError:
    """The API server's Status object as an exception."""
    try:
        told: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        told = {}
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else ApiError)
    if kind is Conflict and told.get("reason") == "AlreadyExists":
        kind = AlreadyExists
    wait = float(retry_after) if retry_after.isdigit() else 0.0
    message = clean(str(told.get("message") or text[:300].decode("utf-8", "replace")), MESSAGE)
    causes = (told.get("details") or {}).get("causes") or ()
    return kind(message, status=status, retry_after=wait, fields=tuple(cause.get("field", "") for cause in causes))
