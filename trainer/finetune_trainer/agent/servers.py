"""The end of a server that answers from a thread."""

from __future__ import annotations

import socket
from contextlib import suppress
from socketserver import TCPServer
from threading import Thread


def end(server: TCPServer) -> None:
    """Stops a server and waits for its end. `serve_forever` checks twice a second whether to end, and immediately on a
    connection, so this function opens one: failed pods should not have to wait."""
    ending = Thread(target=server.shutdown, daemon=True)
    ending.start()
    host, port = server.server_address[:2]
    with suppress(OSError), socket.create_connection((str(host), int(port)), timeout=1):
        pass
    ending.join()
    server.server_close()
