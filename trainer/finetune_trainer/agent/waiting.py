"""Waits for the master: torch's store fails on a name that does not resolve yet, so it is not used before the master's
port is open."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable

POLL_SECONDS = 0.5


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def port_is_open(address: str, port: int, *, timeout: float = 2.0) -> bool:
    """False as well while the name is unknown: the pod may not have an address yet."""
    try:
        socket.create_connection((address, port), timeout=timeout).close()
    except OSError:
        return False
    return True


def wait_for_master(
    address: str, port: int, *, limit_seconds: float, stopped: Callable[[], bool], poll: float = POLL_SECONDS
) -> bool:
    """Returns True when the port is open; False after the time limit, or when a stop is requested."""
    end = time.monotonic() + limit_seconds
    while not stopped() and time.monotonic() < end:
        if port_is_open(address, port):
            return True
        time.sleep(poll)
    return False
