"""A client as light as can be, because it shares the machine with what it measures: raw objects and watches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from finetune_operator.kube.connection import connect
from tests.cluster.rig import Rig

Raw = dict[str, Any]
Seen = Callable[[str, Raw, float], None]
"""Type of a watch event, its object, and when it came (seconds of the harness's clock)."""

MERGE = "application/merge-patch+json"
READ_BUFFER = 2**22


@dataclass(frozen=True)
class Api:
    session: aiohttp.ClientSession
    server: str

    @staticmethod
    @contextlib.asynccontextmanager
    async def of(rig: Rig) -> AsyncIterator[Api]:
        """As the administrator."""
        connection = await connect(str(rig.kubeconfig))
        connector = aiohttp.TCPConnector(limit=0, ssl=connection.ssl_context or True)
        headers = {"Authorization": await connection.token() or "", "User-Agent": "bench"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=timeout, read_bufsize=READ_BUFFER
        ) as session:
            yield Api(session, connection.server)

    async def call(self, method: str, path: str, body: Raw | None = None, content: str = "application/json") -> Raw:
        """The answer. RuntimeError with the server's words for what is no success."""
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": content} if data else {}
        async with self.session.request(method, self.server + path, data=data, headers=headers) as response:
            answer: Raw = orjson.loads(await response.read())
            if response.status >= 300:
                raise RuntimeError(f"{method} {path}: {response.status} {answer.get('message')}")
            return answer

    @contextlib.asynccontextmanager
    async def watching(self, **watches: tuple[str, Seen]) -> AsyncIterator[Waiter]:
        """Each watch: a path, and who is told. It is open when the block begins."""
        waiter = Waiter()
        opened = [asyncio.Event() for _ in watches]
        tasks = [
            asyncio.create_task(self._watch(path, seen, waiter, event))
            for (path, seen), event in zip(watches.values(), opened, strict=True)
        ]
        waiter.tasks = tasks
        try:
            await asyncio.gather(*(event.wait() for event in opened))
            yield waiter
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, path: str, seen: Seen, waiter: Waiter, opened: asyncio.Event) -> None:
        version = (await self.call("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        while True:  # the server ends watches that do not keep up
            url = f"{self.server}{path}?watch=1&resourceVersion={version}&timeoutSeconds=3600"
            async with self.session.get(url) as response:
                opened.set()
                async for line in response.content:
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"{path}: {event['object']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    seen(event["type"], event["object"], time.monotonic())
                    waiter.news.set()


class Waiter:
    """Waits for what the watches bring."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def until(self, ready: Callable[[], bool], *, what: str, seconds: float) -> None:
        """TimeoutError says what did not happen."""
        end = time.monotonic() + seconds
        while not ready():
            for task in self.tasks:
                if task.done():
                    task.result()
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s")
            self.news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), 0.5)
