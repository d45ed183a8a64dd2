"""Listening sockets on IPv4 and IPv6, for servers in pods: a cluster may have either, or both."""

from __future__ import annotations

import socket


def bound(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Without a host it listens on all addresses, of both families if both exist.

    Raises OSError if the port is in use, or the host is not an address of this machine."""
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    except (OSError, ValueError):  # a kernel without IPv6, or one that is told not to use it
        return socket.create_server(("", port), backlog=128)
