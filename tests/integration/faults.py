"""What may happen to a request, and to a watch: faults for a FaultProxy to inject."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from tests.integration.exchange import Entry, Exchange, Fault, begin, lines


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
        exchange.wire.log.append(Entry(exchange.call, code, reached=True))

    async def hold(exchange: Exchange) -> web.StreamResponse:
        await exchange.request.read()  # all of it is on its way; its sender may go
        exchange.wire.outlive(deliver(exchange))
        await asyncio.sleep(3600)
        raise AssertionError("nobody waits so long")

    return hold


# what may happen to a watch


def _events(change: Callable[[bytes], AsyncIterator[bytes]]) -> Fault:
    async def watch(exchange: Exchange) -> web.StreamResponse:
        async with exchange.wire.upstream(exchange) as answer:
            response = await begin(exchange.request, answer)
            async for line in lines(answer):
                async for each in change(line):
                    await response.write(each)
            return response

    return watch


def drop_after(events: int) -> Fault:
    """The watch breaks after so many events."""

    async def watch(exchange: Exchange) -> web.StreamResponse:
        left = events
        async with exchange.wire.upstream(exchange) as answer:
            response = await begin(exchange.request, answer)
            async for line in lines(answer):
                if not left:
                    return exchange.reset()
                left -= 1
                await response.write(line)
            return response

    return watch


def stall() -> Fault:
    """The watch stays open, and nothing comes."""

    async def watch(exchange: Exchange) -> web.StreamResponse:
        async with exchange.wire.upstream(exchange) as answer:
            await begin(exchange.request, answer)
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


def behind(seconds: Callable[[], float]) -> Fault:
    """Each event so much later than it happened, as long as that is asked for: the watch lags, and does not fall back
    further."""

    async def watch(exchange: Exchange) -> web.StreamResponse:
        async with exchange.wire.upstream(exchange) as answer:
            response = await begin(exchange.request, answer)
            inbox: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

            async def read() -> None:
                try:
                    async for line in lines(answer):
                        inbox.put_nowait((time.monotonic(), line))
                finally:
                    inbox.put_nowait((0.0, b""))

            reader = asyncio.ensure_future(read())
            try:
                while (told := await inbox.get())[1]:
                    while time.monotonic() < told[0] + seconds():
                        await asyncio.sleep(0.05)
                    await response.write(told[1])
            finally:
                reader.cancel()
            return response

    return watch
