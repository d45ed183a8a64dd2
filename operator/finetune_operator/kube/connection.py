"""How to reach the API server: kubeconfig or the pod's service account, read by the official client.

One aiohttp session serves requests and one (in kopf's thread) serves watches; a middleware puts the present token on
every request, so a rotated service account token or an exec plugin's new one is used without a new session.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yaml

from finetune_operator import __version__

from .server_clock import ServerClock

Seen = Callable[[str, str, bool, int], None]
"""Called for each answer: method, path, whether it is a watch, HTTP status (0: none came)."""

Handler = Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
Middleware = Callable[[aiohttp.ClientRequest, Handler], Awaitable[aiohttp.ClientResponse]]

TCP_SECONDS = 5
"""A request that the other side's machine has not acknowledged by then is dropped, also by the kernel after a close: no
write arrives long after its sender gave it up (see leader)."""

TOKEN_LIFETIME = 60.0
"""Seconds for which a token is used before the client library is asked again."""


class NotConfigured(Exception):
    """No kubeconfig and no service account was found, or it cannot be used."""


@dataclass(eq=False)
class Connection:
    server: str
    ssl_context: ssl.SSLContext | None
    configuration: Any
    """kubernetes.aio's Configuration; its hook refreshes tokens."""
    exec_loader: Any = None
    """The kubeconfig loader, if it runs a plugin for tokens."""
    clock: ServerClock = field(default_factory=ServerClock)
    """The API server's."""
    _token: str | None = field(default=None, repr=False)
    _token_until: float = 0.0

    def session(self, seen: Seen, *more: Middleware) -> aiohttp.ClientSession:
        """A session of the running event loop, whose requests also go through `more`. The caller closes it."""

        async def authorize(request: aiohttp.ClientRequest, handler: Handler) -> aiohttp.ClientResponse:
            if token := await self.token():
                request.headers["Authorization"] = token
            watch = request.url.query.get("watch") == "true"
            sent = self.clock.steady()
            try:
                response = await handler(request)
            except (aiohttp.ClientError, TimeoutError):
                seen(request.method, request.url.path, watch, 0)
                raise
            self.clock.told(response.headers.get("Date"), sent=sent)
            if response.status == 401:
                self._token_until = 0.0
            seen(request.method, request.url.path, watch, response.status)
            return response

        tls = self.ssl_context if self.ssl_context is not None else True
        connector = aiohttp.TCPConnector(limit=0, ssl=tls, socket_factory=_socket)
        return aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": f"finetune-operator/{__version__}"},
            middlewares=(*more, authorize),
            proxy=getattr(self.configuration, "proxy", None),
            trust_env=False,  # else aiohttp reads ~/.netrc in a thread for each request
            read_bufsize=2**20,
        )

    async def token(self) -> str | None:
        """The Authorization header, or None with client certificates. An exec plugin runs at most once a minute;
        requests while it runs use the token before."""
        if time.monotonic() >= self._token_until:
            self._token_until = time.monotonic() + TOKEN_LIFETIME
            try:
                if self.exec_loader is not None:
                    await self.exec_loader.load_and_set(self.configuration)
                self._token = await self.configuration.get_api_key_with_prefix("BearerToken")
            except Exception:
                self._token_until = 0.0
                raise
        return self._token


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """Gives up what is not acknowledged within TCP_SECONDS, and notices a peer that is gone."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_USER_TIMEOUT", TCP_SECONDS * 1000)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


async def connect(kubeconfig: str | None = None) -> Connection:
    """By the kubeconfig named, else the service account when in a pod, else $KUBECONFIG or ~/.kube/config.

    Raises NotConfigured."""
    # The package pulls in every part of the official client; it is needed only here.
    from kubernetes.aio.client import Configuration
    from kubernetes.aio.client.rest import RESTClientObject
    from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

    configuration, loader = Configuration(), None
    try:
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(client_configuration=configuration)
        else:
            path = kubeconfig or os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
            if not any(map(os.path.exists, path.split(os.pathsep))):
                raise NotConfigured(f"there is no kubeconfig {path}, and this is not a pod")
            loader = await load_kube_config(config_file=path, client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise NotConfigured(str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NotConfigured(f"the kubeconfig {path} is not YAML: {' '.join(str(error).split())}") from error
    rest = RESTClientObject(configuration)
    context = rest.ssl_context if configuration.host.startswith("https://") else None
    plugin = loader if "exec" in (getattr(loader, "_user", None) or {}) else None
    connection = Connection(configuration.host.rstrip("/"), context, configuration, plugin)
    await connection.token()
    return connection
