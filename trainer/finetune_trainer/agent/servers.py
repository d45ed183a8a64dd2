"""The end of a server that answers from a thread."""

from __future__ import annotations

import socket
from contextlib import suppress
from socketserver import TCPServer
from threading import Thread


def end(server: TCPServer) -> None:
    """Returns when it answers no more. `serve_forever` looks twice a second whether to end, and at once when somebody
    comes; a failed gang's pods need not wait for it."""
    ending = Thread(target=server.shutdown, daemon=True)
    ending.start()
    host, port = server.server_address[:2]
    with suppress(OSError), socket.create_connection((str(host), int(port)), timeout=1):
        pass
    ending.join()
    server.server_close()
