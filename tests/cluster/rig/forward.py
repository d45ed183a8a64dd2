"""A TCP forwarder: python -m ... or by file, LISTEN_HOST:PORT TO_HOST:PORT. The API server listens on loopback only;
pods reach it through this door on the bridge. When the other side is down a connection is closed at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys


async def forward(source: str, target: str) -> None:
    host, _, port = source.rpartition(":")
    server = await asyncio.start_server(functools.partial(_serve, target), host, int(port))
    await server.serve_forever()


async def _serve(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, _, port = target.rpartition(":")
    with contextlib.suppress(OSError), contextlib.closing(writer):
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        with contextlib.closing(onward_writer):
            await asyncio.gather(_copy(reader, onward_writer), _copy(onward_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


if __name__ == "__main__":
    asyncio.run(forward(*sys.argv[1:3]))
